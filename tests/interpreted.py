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


def bf16_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the interpreter round to BF16, to which Triton 3.7's truncates, and multiply BF16 as numbers."""
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    types = {tl.float32: torch.float32, tl.bfloat16: torch.bfloat16, tl.float16: torch.float16}
    stored = {tl.float32: np.float32, tl.bfloat16: np.uint16, tl.float16: np.float16}

    def rounded(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        values = torch.from_numpy(np.ascontiguousarray(data)).view(types[source]).to(types[target])
        whole = torch.int16 if values.element_size() == 2 else torch.int32
        return values.view(whole).numpy().view(stored[target])

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data
        return (handle.data.astype(np.uint32) << 16).view(np.float32)

    def dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        return interpreter.TensorHandle(np.matmul(widened(a), widened(b)) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
