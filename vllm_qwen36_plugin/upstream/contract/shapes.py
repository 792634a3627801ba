"""What a name is in a package: a class, a function with its parameters, a value, an attribute; found in the text.

A name is written ``module:NAME``, ``module:CLASS.MEMBER`` (inherited members and attributes of instances included),
``module:.ATTRIBUTE`` (an attribute of whatever object that the module sets or reads) or ``module:ops.NAMESPACE.OP``
(a compiled op, seen by the module's calls of it).
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from .packages import Package

# Where torch declares what is compiled.
_STUBS = {"torch": ("torch._C._VariableFunctions", "torch._C")}
_DEPTH = 8


class Shape(NamedTuple):
    """How a name is called or used, and a digest of a function's body; the digest is "" for all else."""

    text: str
    body: str = ""


def shape_of(package: Package, name: str) -> Shape | None:
    """The shape of a name; None if the package does not have it."""
    module, _, path = name.partition(":")
    if not path:
        return Shape("module") if package.text(module) is not None else None
    if path.startswith("."):
        return Shape("attribute") if _mentions(package.tree(module), path[1:]) else None
    if path.startswith("ops."):
        return _op(package, module, path.removeprefix("ops."))
    owner, _, member = path.partition(".")
    found = _find(package, module, owner)
    if found is None:
        return None if member else _in_stub(package, module, owner)
    where, node = found
    if not member:
        return _shape(package, where, node)
    return _member(package, where, node, member)


def _walk(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class, those in `if`, `try` and `with` included; not those of functions."""
    for node in nodes:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            for handler in getattr(node, "handlers", []):
                inner += handler.body
            yield from _walk(inner)


def _names(node: ast.stmt) -> list[str]:
    """What an assignment binds."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [
        part.id for target in targets if target for part in ast.walk(target) if isinstance(part, ast.Name)
    ]


def _find(package: Package, module: str, name: str, depth: int = 0) -> tuple[str, ast.AST] | None:
    """The module and the node that define a name, imports followed; the last definition counts."""
    tree = package.tree(module)
    if tree is None or depth > _DEPTH:
        return None
    found: tuple[str, ast.AST] | None = None
    stars = []
    for node in _walk(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            found = (module, node)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and name in _names(node):
            # A class that is wrapped and bound again under its name stays what it was.
            found = found if found and isinstance(found[1], ast.ClassDef) else (module, node)
        elif isinstance(node, ast.ImportFrom):
            base = _base(package, module, node)
            for alias in node.names:
                if alias.name == "*":
                    stars.append(base)
                elif (alias.asname or alias.name) == name:
                    inner = _find(package, base, alias.name, depth + 1)
                    submodule = f"{base}.{alias.name}"
                    if inner is None and package.text(submodule) is not None:
                        inner = (submodule, package.tree(submodule) or node)
                    outside = base.split(".")[0] != package.name
                    found = inner or ((module, node) if outside else found)
    for base in stars if found is None else ():
        found = found or _find(package, base, name, depth + 1)
    if found is None and package.text(f"{module}.{name}") is not None:
        found = (f"{module}.{name}", package.tree(f"{module}.{name}") or tree)
    return found


def _base(package: Package, module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    above = parts[: len(parts) - node.level + int(package.is_package(module))]
    return ".".join([*above, *([node.module] if node.module else [])])


def _member(package: Package, module: str, node: ast.AST, name: str, depth: int = 0) -> Shape | None:
    """A method, a field or an attribute that methods set on ``self``; of a base class if the class has none."""
    if isinstance(node, ast.Module):
        found = _find(package, module, name)
        return _shape(package, *found) if found else None
    if isinstance(node, ast.Assign | ast.AnnAssign) and depth <= _DEPTH:
        # An object: made by a call of its class, or declared to be of it.
        value = node.annotation if isinstance(node, ast.AnnAssign) else node.value
        made = _dotted(package, module, value.func if isinstance(value, ast.Call) else value)
        return _member(package, *made, name, depth + 1) if made else None
    if not isinstance(node, ast.ClassDef) or depth > _DEPTH:
        return None
    for inner in _walk(node.body):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and inner.name == name:
            return _shape(package, module, inner)
        if isinstance(inner, ast.Assign | ast.AnnAssign) and name in _names(inner):
            return Shape("field")
    stored = (part for part in ast.walk(node) if isinstance(part, ast.Attribute) and part.attr == name)
    if any(isinstance(part.ctx, ast.Store) for part in stored):
        return Shape("attribute")
    for base in node.bases:
        root = base.value if isinstance(base, ast.Subscript) else base
        found = _dotted(package, module, root)
        if found:
            inherited = _member(package, found[0], found[1], name, depth + 1)
            if inherited:
                return inherited
    return None


def _dotted(package: Package, module: str, node: ast.expr) -> tuple[str, ast.AST] | None:
    if isinstance(node, ast.Name):
        return _find(package, module, node.id)
    if isinstance(node, ast.Attribute):
        owner = _dotted(package, module, node.value)
        return _find(package, owner[0], node.attr) if owner and isinstance(owner[1], ast.Module) else None
    return None


def _shape(package: Package, module: str, node: ast.AST) -> Shape:
    if isinstance(node, ast.ClassDef):
        return Shape(f"class({', '.join(ast.unparse(base) for base in node.bases)})")
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        kinds = [ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list]
        if "property" in kinds or "cached_property" in kinds:
            return Shape("property", _digest(package, module, node))
        kind = next((f"{k} " for k in kinds if k in ("classmethod", "staticmethod")), "")
        return Shape(f"{kind}def({_parameters(node.args)})", _digest(package, module, node))
    if isinstance(node, ast.Module):
        return Shape("module")
    return Shape("imported" if isinstance(node, ast.ImportFrom) else "value")


def _parameters(args: ast.arguments) -> str:
    """Names in order, ``=`` after those with a default, ``/`` and ``*`` where they stand."""
    positional = [*args.posonlyargs, *args.args]
    optional = len(positional) - len(args.defaults)
    written = [f"{arg.arg}{'=' if at >= optional else ''}" for at, arg in enumerate(positional)]
    if args.posonlyargs:
        written.insert(len(args.posonlyargs), "/")
    if args.vararg or args.kwonlyargs:
        written.append(f"*{args.vararg.arg if args.vararg else ''}")
    defaults = zip(args.kwonlyargs, args.kw_defaults, strict=True)
    written += [f"{arg.arg}{'=' if default is not None else ''}" for arg, default in defaults]
    return ", ".join(written + ([f"**{args.kwarg.arg}"] if args.kwarg else []))


def _digest(package: Package, module: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Of what a function does: its lines without indentation, comment lines, empty lines and docstring.

    Of the text and not of the tree, which is another in each version of Python.
    """
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body:
        return ""
    lines = (package.text(module) or "").splitlines()[body[0].lineno - 1 : node.end_lineno]
    kept = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]


def _mentions(tree: ast.Module | None, name: str) -> bool:
    if tree is None:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == name:
            return True
        if isinstance(node, ast.Constant) and node.value == name:
            return True
        if isinstance(node, ast.keyword) and node.arg == name:
            return True
    return False


def _op(package: Package, module: str, name: str) -> Shape | None:
    calls = set()
    for node in ast.walk(package.tree(module) or ast.Module([], [])):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"torch.ops.{name}":
            calls.add(f"op of {len(node.args) + len(node.keywords)}")
    return Shape(" or ".join(sorted(calls))) if calls else None


def _in_stub(package: Package, module: str, name: str) -> Shape | None:
    """A compiled function, from the stub that declares it: a large file, so only its lines are parsed."""
    for stub in _STUBS.get(package.name, ()) if module in ("torch", "torch._C") else ():
        text = package.text(stub, ".pyi") or ""
        match = re.search(rf"^def {re.escape(name)}\((?:.|\n)*?\.\.\.", text, re.MULTILINE)
        if match:
            node = ast.parse(match[0]).body[0]
            return _shape(package, stub, node)._replace(body="")
    return None
