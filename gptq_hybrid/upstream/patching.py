"""Run a function of gptqmodel as a ``.patch`` of this package would make it.

A patch is an ordinary unified diff, with paths as in gptqmodel's repository. It is applied to the source text
of the installed module, in memory: the files on disk stay as they are.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from types import ModuleType
from typing import Any

from .versions import moved

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")


class PatchError(ValueError):
    """A text that is not a unified diff, or that does not apply."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """One change: the lines before, the lines after, and the line number where the patch says they are."""

    line: int
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Patch:
    """Changes to one file.

    Attributes:
        label: the patch's own place, such as ``gptqmodel-7.6.0/solver.patch``.
        path: of the file, from the root of the repository.
        hunks: in the order of the file.
    """

    label: str
    path: str
    hunks: tuple[Hunk, ...]

    def apply(self, source: str) -> str:
        """Return ``source`` with every hunk applied.

        Stricter than ``patch``: all lines of a hunk must match to the letter, occur exactly once, and stand behind
        those of the hunk before. Line numbers do not count.

        Raises:
            PatchError: a hunk does not apply; nothing is changed then.
        """
        lines, start = source.splitlines(keepends=True), 0
        for hunk in self.hunks:
            before = [f"{line}\n" for line in hunk.before]
            places = [
                at for at in range(len(lines) - len(before) + 1) if lines[at : at + len(before)] == before
            ]
            if len(places) != 1 or places[0] < start:
                times = f"{len(places)} times" if len(places) != 1 else "out of order"
                raise PatchError(f"{self.label}: the lines expected at line {hunk.line} are there {times}")
            after = [f"{line}\n" for line in hunk.after]
            lines[places[0] : places[0] + len(before)] = after
            start = places[0] + len(after)
        return "".join(lines)


def read_patch(text: str, label: str) -> Patch:
    """Parse a unified diff of one file; whatever stands above its ``---`` and ``+++`` lines is skipped.

    Raises:
        PatchError: the text is not a unified diff of one file.
    """
    lines = text.splitlines()
    heads = [
        at for at in range(len(lines) - 1) if lines[at].startswith("--- a/") and lines[at + 1][:6] == "+++ b/"
    ]
    if len(heads) != 1:
        raise PatchError(f"{label} is expected to change one file, not {len(heads)}")
    hunks, at = [], heads[0] + 2
    while at < len(lines):
        match = _HUNK.match(lines[at])
        if match is None:
            raise PatchError(f"{label}, line {at + 1}: a hunk is expected to begin here")
        line, old, new = int(match[1]), int(match[2] or 1), int(match[3] or 1)
        before: list[str] = []
        after: list[str] = []
        at += 1
        while at < len(lines) and (len(before) < old or len(after) < new):
            # Mail programs strip the space that stands for an empty line of context.
            sign, content = lines[at][:1] or " ", lines[at][1:]
            if sign not in " +-":
                break
            if sign in " -":
                before.append(content)
            if sign in " +":
                after.append(content)
            at += 1
        if (len(before), len(after)) != (old, new):
            raise PatchError(f"{label}: the hunk for line {line} is not as long as it says")
        hunks.append(Hunk(line, tuple(before), tuple(after)))
    if not hunks:
        raise PatchError(f"{label} holds no change")
    return Patch(label, lines[heads[0] + 1].removeprefix("+++ b/").partition("\t")[0], tuple(hunks))


def shipped_patches(name: str) -> list[Patch]:
    """Return the patches called ``name`` of every version of gptqmodel, the latest version first."""
    root = files(__package__) / "patches"
    patches = [
        read_patch((folder / name).read_text(encoding="utf-8"), f"{folder.name}/{name}")
        for folder in root.iterdir()
        if folder.is_dir() and (folder / name).is_file()
    ]
    return sorted(patches, key=lambda patch: _numbers(patch.label), reverse=True)


def patched_method(module: ModuleType, method: str, patches: Iterable[Patch]) -> Any:
    """Compile a method of a class as the first of ``patches`` that applies would make it.

    Args:
        module: where the class is defined. The new function uses its names.
        method: such as ``"GPTQ.quantize"``. Whatever decorates it in the source decorates the new one.
        patches: tried in order, whatever version is installed.

    Returns:
        The new function. Its tracebacks show lines of the patched source.

    Raises:
        IncompatibleError: no patch applies, the source cannot be read, or the method is not the one in the source.
    """
    owner, _, name = method.partition(".")
    try:
        source = inspect.getsource(module)
        current = inspect.getsource(inspect.unwrap(getattr(getattr(module, owner), name)))
    except OSError as error:
        raise moved(f"the source of {method} cannot be read: {error}") from error
    if source.count(current) != 1:
        raise moved(f"{method} is expected to be the one that {module.__name__} defines")
    reasons = []
    for patch in patches:
        try:
            return _compile(module, owner, name, patch.apply(source), patch.label)
        except PatchError as error:
            reasons.append(str(error))
    raise moved(f"no patch of {method} applies: {'; '.join(reasons)}")


def _compile(module: ModuleType, owner: str, name: str, source: str, label: str) -> Any:
    (class_,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == owner
    )
    (function,) = (node for node in class_.body if isinstance(node, ast.FunctionDef) and node.name == name)
    file = f"<{module.__name__} with {label}>"
    # Without a time of change, so that it is not looked for on disk.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    made: dict[str, Any] = {}
    exec(compile(ast.Module([function], []), file, "exec"), vars(module), made)
    return made[name]


def _numbers(label: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", label)]
