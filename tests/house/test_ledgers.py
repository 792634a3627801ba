"""The ledgers of both ``upstream`` rooms name every module that touches upstream, and none that is gone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from vllm_qwen36_plugin.features import FEATURES

from .pages import LEDGERS, ROOT

LABELS = ("Changes", "Why", "Versions", "Checks", "Reference", "May go")
# In the ledgers a verb of what is done may stand for "Changes".
VERBS = ("Changes", "Reads", "Uses", "Calls", "Overrides")
ENTRY = re.compile(r"^##+ (\d+)\. (.+)\n((?:(?!#).*\n?)*)", re.MULTILINE)


def with_header(room: Path) -> set[str]:
    """Return the modules of ``room`` whose docstring has lines for what changes and when that may go."""
    docs = {
        path.relative_to(room).as_posix(): ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        or ""
        for path in room.rglob("*.py")
    }
    return {name for name, doc in docs.items() if re.search(r"(?s)^Changes: .*^May go: ", doc, re.MULTILINE)}


def entries(room: Path) -> list[tuple[str, str, str]]:
    """Return number, heading and text of each entry."""
    return ENTRY.findall((room / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("ledger", sorted(LEDGERS))
def test_each_module_that_has_the_header_has_an_entry(ledger: str) -> None:
    room = ROOT / ledger
    named = {name for _, heading, _ in entries(room) for name in re.findall(r"`([\w/]+\.py)`", heading)}
    assert with_header(room) <= named
    # A module of the room, or of a room beside it.
    assert {name for name in named if not ((room / name).exists() or (room.parent / name).exists())} == set()


@pytest.mark.parametrize("ledger", sorted(LEDGERS))
def test_entries_are_counted_and_whole(ledger: str) -> None:
    found = entries(ROOT / ledger)
    assert [int(number) for number, _, _ in found] == list(range(1, len(found) + 1))
    for _, heading, text in found:
        lacking = [label for label in LABELS[1:] if f"{label}: " not in text]
        assert (heading, lacking) == (heading, [])
        assert text.strip().startswith(tuple(f"* {verb}: " for verb in VERBS)), heading


def test_the_plugins_ledger_lists_its_features() -> None:
    text = (ROOT / "vllm_qwen36_plugin/upstream/README.md").read_text(encoding="utf-8")
    platforms = {"any": "all", "cpu": "CPU", "cuda": "CUDA"}
    listed = re.findall(r"^\| (.+) \| (all|CPU|CUDA) \|", text, re.MULTILINE)
    assert listed == [(feature.name, platforms[feature.platform]) for feature in FEATURES]


def test_a_header_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""A.\n\nChanges: x.\nWhy: y.\nMay go: z.\n"""')
    (tmp_path / "b.py").write_text('"""Changes nothing."""')
    assert with_header(tmp_path) == {"a.py"}
