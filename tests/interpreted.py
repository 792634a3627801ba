"""A kernel of Triton on a CPU: a copy of its module that Triton interprets, while the module stays as it is."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest


def interpreted_copy(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The copy, until ``monkeypatch`` is undone."""
    import triton.language as tl

    assert module.__file__ is not None
    name = f"{module.__name__}_interpreted"
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, name, copy)
    spec.loader.exec_module(copy)
    # Of Triton's own library, which was made to be compiled when it was imported.
    monkeypatch.setattr(tl, "sum", lambda x, axis: tl.reduce(x, axis, tl.standard._sum_combine))
    monkeypatch.setattr(tl, "zeros_like", lambda x: tl.full(x.shape, 0, x.dtype))
    monkeypatch.setattr(tl, "zeros", lambda shape, dtype: tl.full(shape, 0, dtype))
    return copy
