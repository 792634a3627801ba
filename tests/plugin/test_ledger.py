"""A module that touches vLLM below its public interface says at its top what, why, which versions and how long."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vllm_qwen36_plugin

LABELS = ["Changes", "Why", "Versions", "Checks", "May go"]
ROOT = Path(vllm_qwen36_plugin.__file__).parent
MODULES = [path for path in sorted((ROOT / "upstream").glob("*.py")) if path.stem != "__init__"]


@pytest.mark.parametrize("path", [*MODULES, ROOT / "cpu/sampling.py"], ids=lambda path: path.stem)
def test_a_module_that_touches_vllm_has_five_entries(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    entries = [line.partition(": ") for line in docstring.splitlines() if line.partition(":")[0] in LABELS]
    assert [label for label, _, _ in entries] == LABELS
    assert all(text for _, _, text in entries)


def test_the_ledger_is_not_empty() -> None:
    assert len(MODULES) >= 9
