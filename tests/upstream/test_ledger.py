"""A module that changes gptqmodel says at its top what, why, for which versions, how it checks, and how long."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import gptq_hybrid.definition
import gptq_hybrid.upstream

LABELS = ["Changes", "Why", "Versions", "Checks", "May go"]
# They compute, or hold the others together.
HELPERS = {"__init__", "_block_kernel", "_energy", "_pinned", "patching"}
ROOM = Path(gptq_hybrid.upstream.__file__).parent
# What is proposed to gptqmodel changes nothing here.
PROPOSALS = ROOM / "proposals"
MODULES = sorted(
    path for path in ROOM.rglob("*.py") if path.stem not in HELPERS and PROPOSALS not in path.parents
)


@pytest.mark.parametrize("path", [*MODULES, Path(gptq_hybrid.definition.__file__).with_name("_hybrid.py")])
def test_a_module_that_changes_gptqmodel_has_five_entries(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    entries = [line.partition(": ") for line in docstring.splitlines() if line.partition(":")[0] in LABELS]
    assert [label for label, _, _ in entries] == LABELS
    assert all(text for _, _, text in entries)


def test_the_ledger_is_not_empty() -> None:
    assert len(MODULES) >= 12
    for name in HELPERS - {"__init__"}:
        place = "" if name in ("_energy", "patching") else "speedups."
        importlib.import_module(f"gptq_hybrid.upstream.{place}{name}")
