"""Every name of another package that our sources touch, as far as their text shows it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile

from vllm_qwen36_plugin.upstream.contract.packages import PACKAGES, Package
from vllm_qwen36_plugin.upstream.contract.shapes import shape_of

from .source_tree import Source, SourceTree

# Classes that a function of ours returns, by what they are bound to: text does not show what they are.
MADE = {
    "_StockConfig": "vllm.model_executor.layers.quantization.auto_gptq:AutoGPTQConfig",
    "_StockMethod": "vllm.model_executor.layers.quantization.auto_gptq:AutoGPTQLinearMethod",
    "stock_method": "vllm.model_executor.layers.quantization.auto_gptq:AutoGPTQLinearMethod",
}
# A name that is found at run time in another place than where it is asked for.
ELSEWHERE = {
    "vllm.platforms:current_platform.device_count": "vllm.platforms.cuda:NvmlCudaPlatform.device_count",
    # Compiled; torch's own Parameter is made by it.
    "torch:Tensor._make_subclass": "torch.nn.parameter:._make_subclass",
}
_BY_NAME = ("getattr", "hasattr", "setattr")


class Touches:
    """The touches of a source tree, against the packages that are installed."""

    def __init__(self, tree: SourceTree, packages: Iterable[Package]) -> None:
        self.tree = tree
        self.packages = {package.name: package for package in packages}
        self._bases = {
            f"{source.name}.{node.name}": (source, node)
            for source in tree
            for node in ast.walk(source.tree)
            if isinstance(node, ast.ClassDef)
        }

    def bindings(self, source: Source) -> dict[str, str]:
        """Names that imports bind, by their dotted targets; of our own packages too."""
        bound = {}
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                bound |= {
                    a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0]
                    for a in node.names
                }
            elif isinstance(node, ast.ImportFrom):
                parts = source.package.split(".")
                above = parts[: len(parts) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                bound |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
        return bound

    def named(self, dotted: str) -> str | None:
        """A dotted name as ``module:path``, or as a module; None if it is not of these packages."""
        if dotted.startswith("torch.ops."):
            # PyTorch's own operators are public; vLLM's are registered by its library.
            namespace, _, op = dotted.removeprefix("torch.ops.").partition(".")
            return f"vllm._custom_ops:ops.{namespace}.{op}" if namespace == "_C" and op else None
        package = self.packages.get(dotted.split(".")[0])
        if package is None:
            return None
        parts = list(takewhile(lambda part: not part.startswith("__"), dotted.split(".")))
        for end in range(len(parts), 0, -1):
            module = ".".join(parts[:end])
            if package.text(module) is not None or package.text(module, ".pyi") is not None:
                name = f"{module}:{'.'.join(parts[end : end + 2])}"
                return module if end == len(parts) else ELSEWHERE.get(name, name)
        return None

    def of(self, source: Source) -> Iterator[tuple[int, str]]:
        """Line and name of each touch that begins at an import."""
        bound = self.bindings(source)
        constants = _constants(source.tree)
        for node in ast.walk(source.tree):
            dotted = None
            if isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    if name := self.named(f"{node.module}.{alias.name}"):
                        yield node.lineno, name
                    elif str(node.module).split(".")[0] in {*PACKAGES} - self.packages.keys():
                        # Not installed here: what follows "import" is taken for a name, not a module.
                        yield node.lineno, f"{node.module}:{alias.name}"
            elif isinstance(node, ast.Import):
                away = (
                    a.name for a in node.names if a.name.split(".")[0] in {*PACKAGES} - self.packages.keys()
                )
                yield from ((node.lineno, name) for name in away)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # A module that is imported by its name in a string; "vllm.log" is a file, "vllm.qwen36" a logger.
                name = self.named(node.value) if re.fullmatch(r"\w+(\.\w+)+", node.value) else None
                if name and "." in name.partition(":")[0]:
                    yield node.lineno, name
            elif isinstance(node, ast.Attribute):
                dotted = None if node.attr.startswith("__") else _dotted(node, bound)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BY_NAME:
                owner, key = _dotted(node.args[0], bound), node.args[1]
                value = constants.get(key.id) if isinstance(key, ast.Name) else getattr(key, "value", None)
                dotted = f"{owner}.{value}" if owner and isinstance(value, str) else None
            if dotted and (name := self.named(dotted)):
                yield node.lineno, name

    def overridden(self, source: Source) -> Iterator[tuple[int, str]]:
        """Line and name of each member of an upstream class that a subclass of ours overrides, uses or assigns."""
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ClassDef):
                continue
            for base in self.upstream_bases(source, node):
                package = self.packages[base.split(".")[0].split(":")[0]]
                for line, member in _members(node):
                    if shape_of(package, f"{base}.{member}") is not None:
                        yield line, f"{base}.{member}"

    def upstream_bases(self, source: Source, node: ast.ClassDef) -> set[str]:
        """The upstream classes that a class of ours descends from."""
        bound, found = self.bindings(source), set()
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in MADE:
                found.add(MADE[base.id])
            elif dotted := _dotted(
                base,
                {n.name: f"{source.name}.{n.name}" for n in source.tree.body if isinstance(n, ast.ClassDef)}
                | bound,
            ):
                if dotted in self._bases:
                    found |= self.upstream_bases(*self._bases[dotted])
                elif (name := self.named(dotted)) and ":" in name:
                    found.add(name)
        return found

    def own_names(self) -> set[str]:
        """What our own classes, functions and fields are called."""
        names: set[str] = set()
        for source in self.tree:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    names.add(node.name)
                if isinstance(node, ast.ClassDef):
                    fields = (n.target for n in node.body if isinstance(n, ast.AnnAssign))
                    names |= {field.id for field in fields if isinstance(field, ast.Name)}
                    plain = (target for n in node.body if isinstance(n, ast.Assign) for target in n.targets)
                    names |= {target.id for target in plain if isinstance(target, ast.Name)}
                stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
                if stored and isinstance(node.value, ast.Name) and node.value.id == "self":
                    names.add(node.attr)
            names |= self.tree.defined(source.name)
        return names

    def attributes(self, source: Source) -> Iterator[tuple[int, str]]:
        """Line and name of each attribute of an object whose class the text does not show."""
        bound = {n: t for n, t in self.bindings(source).items() if t.split(".")[0] not in self.tree.tops}
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and not _dotted(node, bound):
                yield node.lineno, node.attr
            key = _asked_by_name(node)
            if key is not None and not _dotted(node.args[0], bound):
                yield node.lineno, key


def _dotted(node: ast.AST, bound: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return bound.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, bound)
        return f"{owner}.{node.attr}" if owner else None
    return None


def _constants(tree: ast.Module) -> dict[str, str]:
    pairs = ((n.targets[0], n.value) for n in tree.body if isinstance(n, ast.Assign))
    return {
        target.id: value.value
        for target, value in pairs
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


def _asked_by_name(node: ast.AST) -> str | None:
    """The name in ``getattr(object, "name")`` and the like."""
    asks = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BY_NAME
    return str(node.args[1].value) if asks and isinstance(node.args[1], ast.Constant) else None


def _members(node: ast.ClassDef) -> Iterator[tuple[int, str]]:
    """Methods of a class, and what it takes of ``self``, ``cls`` and ``super()``; dunder names left out."""
    for inner in ast.walk(node):
        name = None
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            name = inner.name
        elif isinstance(inner, ast.Attribute):
            owner = inner.value
            own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
            above = isinstance(owner, ast.Call) and ast.unparse(owner.func) == "super"
            name = inner.attr if own or above else None
        elif (key := _asked_by_name(inner)) is not None and ast.unparse(inner.args[0]) == "self":
            name = key
        if name and not (name.startswith("__") and name.endswith("__")):
            yield inner.lineno, name
