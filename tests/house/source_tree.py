"""Read the imports and strings of a source tree with ``ast``; nothing of it is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One imported name.

    Attributes:
        line: where the import stands.
        target: full dotted name of what is imported, a module or a name in one.
        bound: the local name it gets; for ``import a.b`` the first part.
    """

    line: int
    target: str
    bound: str


@dataclass(frozen=True)
class Source:
    """One file: its dotted module name, its path, and whether it is a package's ``__init__``."""

    name: str
    path: Path
    is_package: bool

    @property
    def package(self) -> str:
        """The package that relative imports of this file start from."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @property
    def room(self) -> str:
        """The first two parts of the name: ``gptq_hybrid.checkpoint`` for all that is below it."""
        return ".".join(self.name.split(".")[:2])

    @property
    def tree(self) -> ast.Module:
        return _parse(self.path.read_text(encoding="utf-8"))


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


class SourceTree:
    """All Python files below some folders of ``root``; a folder's name is that of its top package."""

    def __init__(self, root: Path, tops: Sequence[str]) -> None:
        self.tops = tuple(tops)
        self.sources: dict[str, Source] = {}
        for top in tops:
            for path in sorted((root / top).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                is_package = parts[-1] == "__init__"
                name = ".".join(parts[:-1] if is_package else parts)
                self.sources[name] = Source(name, path, is_package)

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources.values())

    def module_of(self, target: str) -> str | None:
        """The module that a dotted name is or lies in: its longest prefix that is a file; None if there is none."""
        parts = target.split(".")
        for end in range(len(parts), 0, -1):
            name = ".".join(parts[:end])
            if name in self.sources:
                return name
        return None

    def exists(self, target: str) -> bool:
        """Whether a dotted name is a module, or a name that its module defines (looking one level deep)."""
        module = self.module_of(target)
        if module is None:
            return False
        rest = target.removeprefix(module).lstrip(".").split(".")[0]
        names = self.defined(module)
        # A module with `__getattr__` makes names when they are asked for.
        return not rest or rest in names or "__getattr__" in names

    def defined(self, module: str) -> set[str]:
        """Names at the top level of a module: definitions, assignments and imports, in blocks too."""
        names: set[str] = set()
        nodes: list[ast.AST] = list(self.sources[module].tree.body)
        while nodes:
            node = nodes.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
                continue
            if isinstance(node, ast.Import | ast.ImportFrom):
                names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            nodes += ast.iter_child_nodes(node)
        return names

    def imports(self, source: Source) -> Iterator[Import]:
        """Imports of this tree's own packages, at the top and in functions.

        Blocks under ``if TYPE_CHECKING:`` are left out: they are never executed.
        """
        nodes: list[ast.AST] = [source.tree]
        while nodes:
            node = nodes.pop()
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                nodes += node.orelse
                continue
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    yield from self._own(Import(node.lineno, alias.name, bound))
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = source.package.split(".")[: len(source.package.split(".")) - node.level + 1]
                    base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield from self._own(
                        Import(node.lineno, f"{base}.{alias.name}", alias.asname or alias.name)
                    )
            nodes += ast.iter_child_nodes(node)

    def _own(self, imported: Import) -> Iterator[Import]:
        if imported.target.split(".")[0] in self.tops:
            yield imported

    def arrows(self) -> dict[str, set[str]]:
        """By module, the modules it imports. A package's ``__init__`` counts only where a name is taken from it."""
        arrows: dict[str, set[str]] = {}
        for source in self:
            targets = {self.module_of(imported.target) for imported in self.imports(source)}
            arrows[source.name] = {name for name in targets if name is not None and name != source.name}
        return arrows


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other, by way of others or directly (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    result: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in arrows.get(name, ()):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            component = set(stack[at:])
            del stack[at:]
            if len(component) > 1:
                result.append(component)

    for name in arrows:
        if name not in index:
            visit(name)
    return result


def private_uses(tree: SourceTree, top: str) -> set[str]:
    """Uses in ``top`` of a private module or name from outside the package that owns it, as ``MODULE: NAME``.

    Imports, and attributes of what was imported from another room: ``from room import module; module._name``.
    """
    uses: set[str] = set()
    for source in tree:
        if source.name.split(".")[0] != top:
            continue
        targets = {imported.bound: imported.target for imported in tree.imports(source)}
        uses |= {
            f"{source.name}: {target}" for target in targets.values() if _is_foreign(target, source.package)
        }
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            owner = targets.get(node.value.id, source.room)
            if _is_private(node.attr) and ".".join(owner.split(".")[:2]) != source.room:
                uses.add(f"{source.name}: {owner}.{node.attr}")
    return uses


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_foreign(target: str, package: str) -> bool:
    """Whether the first private part of a dotted name belongs to a package that ``package`` is not within."""
    parts = target.split(".")
    for at, part in enumerate(parts):
        if _is_private(part):
            owner = ".".join(parts[:at])
            return package != owner and not package.startswith(f"{owner}.")
    return False


def strings(source: Source) -> Iterator[tuple[int, str]]:
    """Every string of a file, docstrings included, with its line. The parts of an f-string come one by one."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def programs(source: Source) -> Iterator[tuple[int, str]]:
    """Modules that are run by name: what follows ``"-m"`` in a list, a tuple or a call, with its line."""
    for node in ast.walk(source.tree):
        items: list[ast.expr] = []
        if isinstance(node, ast.List | ast.Tuple):
            items = node.elts
        elif isinstance(node, ast.Call):
            items = node.args
        for flag, module in pairwise(items):
            values = [item.value for item in (flag, module) if isinstance(item, ast.Constant)]
            if len(values) == 2 and values[0] == "-m" and isinstance(values[1], str):
                yield module.lineno, values[1]
