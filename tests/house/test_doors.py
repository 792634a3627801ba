"""How the rooms (packages) of the two distributions may use each other.

A room is used through its ``__init__`` or a module without an underscore, and imports only rooms below its own.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from .source_tree import Source, SourceTree, circles, private_uses, programs, strings

ROOT = Path(__file__).parents[2]
PACKAGES = ("gptq_hybrid", "vllm_qwen36_plugin")
# Trees whose use of private names is checked.
DOORS = (*PACKAGES, "bench")
MOST_LINES = 500

# From the top floor down. A room may import rooms of lower floors only; rooms of one floor do not know each other.
FLOORS = {
    "gptq_hybrid": (
        ("plugin",),  # what the distribution contributes to the hooks; loaded by name
        ("cli",),
        ("demo", "sensitivity", "receipt"),
        ("quantize",),
        ("definition", "tuning", "draft_vocab"),
        ("writer", "evaluate", "live", "plan"),
        ("recipes",),
        ("upstream",),
        ("doctor", "calibration", "streaming", "losses"),
        ("memory",),
        ("checkpoint",),
        ("hooks", "common", "packing"),
    ),
    "vllm_qwen36_plugin": (
        ("plugin",),  # what the distribution contributes to the hooks; loaded by name
        ("cli",),
        ("env",),
        ("tune", "features", "models", "profiles"),
        ("draft_head",),
        ("verify_head",),
        ("act_order", "mtp_guard", "prefill", "cpu"),
        ("ranks",),
        ("start", "upstream", "report"),
        ("options", "hookspecs", "log"),
        ("architectures", "errors"),
    ),
}
# Rooms of the other distribution that the plugin may import; the producer imports nothing of the plugin.
OPEN_TO_THE_PLUGIN = {"common", "hooks", "checkpoint", "doctor", "live", "memory", "packing"}
OPEN_TO_TUNE = {"calibration"}

_NAME = rf"(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+"
DOTTED = re.compile(rf"(?<![\w./-])({_NAME})(?::([A-Za-z_]\w*))?")
RUN = re.compile(rf"-m ((?:{'|'.join(PACKAGES)})(?:\.\w+)*)")
IMPORT_LINE = re.compile(rf"^\s*from ((?:{'|'.join(PACKAGES)})(?:\.\w+)*) import \(?([\w, ]+)", re.MULTILINE)
# A folder of sources, or a file: no name of Python.
NOT_NAMES = (".toml", ".json", ".md", ".py", ".csv")


@pytest.fixture(scope="module")
def tree() -> SourceTree:
    return SourceTree(ROOT, (*PACKAGES, "bench"))


@pytest.mark.parametrize("top", DOORS)
def test_no_room_uses_what_is_private_to_another(tree: SourceTree, top: str) -> None:
    assert private_uses(tree, top) == set()


def upward(tree: SourceTree, floors: dict[str, tuple[tuple[str, ...], ...]]) -> set[str]:
    """Imports of a room on the same floor or above, and those across distributions that are not open."""
    level = {
        f"{top}.{room}": number
        for top, rooms in floors.items()
        for number, floor in enumerate(rooms)
        for room in floor
    }
    offenders: set[str] = set()
    for name, targets in tree.arrows().items():
        room = tree.sources[name].room
        for other in {tree.sources[target].room for target in targets} - {room, *floors}:
            # A package's own door, and `__version__`, which it holds, are nobody's floor.
            if room in floors:
                continue
            top, other_top = room.split(".")[0], other.split(".")[0]
            if top == other_top:
                allowed = level.get(other, -1) > level.get(room, -1)
            else:
                open_rooms = OPEN_TO_THE_PLUGIN | (OPEN_TO_TUNE if room.endswith(".tune") else set())
                allowed = top == "vllm_qwen36_plugin" and other.split(".")[1] in open_rooms
            if not allowed:
                offenders.add(f"{room} -> {other}")
    return offenders


def test_a_room_imports_only_rooms_below_it() -> None:
    """Imports in functions count; those for type checkers alone do not."""
    offenders = upward(SourceTree(ROOT, PACKAGES), FLOORS)
    assert offenders == set()


@pytest.mark.parametrize("top", PACKAGES)
def test_every_room_has_its_floor(top: str) -> None:
    rooms = {
        path.stem
        for path in (ROOT / top).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == {room for floor in FLOORS[top] for room in floor}


def test_no_files_import_each_other_in_a_circle() -> None:
    """At the top or in functions; imports for type checkers alone are left out."""
    members = set().union(*circles(SourceTree(ROOT, PACKAGES).arrows()))
    assert members == set()


def absent_names(tree: SourceTree, source: Source) -> set[str]:
    """Names of modules, or of what they define, that a file has in strings and that do not exist."""
    absent: set[str] = set()
    for _, text in strings(source):
        for match in DOTTED.finditer(text):
            name = match[1] if match[2] is None else f"{match[1]}.{match[2]}"
            if not name.endswith(NOT_NAMES) and not tree.exists(name):
                absent.add(f"{source.name}: {match[0]}")
        for match in RUN.finditer(text):
            if match[1] not in tree.sources:
                absent.add(f"{source.name}: -m {match[1]}")
        for module, names in IMPORT_LINE.findall(text):
            for name in (name.split(" as ")[0].strip() for name in names.split(",")):
                if name and not tree.exists(f"{module}.{name}"):
                    absent.add(f"{source.name}: from {module} import {name}")
    for _, module in programs(source):
        if module.split(".")[0] in PACKAGES and module not in tree.sources:
            absent.add(f"{source.name}: -m {module}")
    return absent


def test_names_in_strings_exist(tree: SourceTree) -> None:
    """``pkg.mod:Class`` for vLLM, ``-m pkg.mod``, targets of monkeypatch, programs, references in prose."""
    files = [*SourceTree(ROOT, (*PACKAGES, "bench", "tests"))]
    absent: set[str] = set()
    for source in files:
        if source.room != "tests.house":
            absent |= absent_names(tree, source)
    assert absent == set()


def test_entry_points_exist(tree: SourceTree) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["scripts"], *project["entry-points"].values()]
    named = [name for group in groups for name in group.values()]
    assert len(named) >= 5
    assert [name for name in named if not tree.exists(name.replace(":", "."))] == []


def test_no_module_is_too_long() -> None:
    tree = SourceTree(ROOT, (*PACKAGES, "tests"))
    lines = {source.name: len(source.path.read_text().splitlines()) for source in tree}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
