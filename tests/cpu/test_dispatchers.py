"""Dispatchers that took hold of a kernel of Triton at import get vLLM's own function for it."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm_qwen36_plugin.cpu.dispatchers import mend_dispatchers

FALLBACKS, DRAFTS, SAMPLER = (
    "vllm.utils.cpu_triton_utils",
    "vllm.v1.spec_decode.utils",
    "vllm.v1.sample.rejection_sampler",
)


def step_kernel(table_ptr: Any, table_stride: Any, SIZE: Any) -> None:  # noqa: N803 - as in kernels
    """What stands for a kernel without Triton."""


def unknown_kernel() -> None:
    """A kernel that vLLM has no function for."""


def other_kernel(a: Any, b: Any) -> None:
    """A kernel whose function takes something else."""


class Function:
    """As vLLM wraps one: whatever the grid, it is called."""

    def __init__(self, func: Any) -> None:
        self.func = func

    def __getitem__(self, grid: Any) -> Any:
        return self.func


@pytest.fixture
def calls() -> list[Any]:
    """What vLLM's function was called with."""
    return []


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> dict[str, Any]:
    """The three modules as 0.30.0 has them: one dispatcher stale, one replaced, one without a function."""
    made: dict[str, Any] = {name: ModuleType(name) for name in (FALLBACKS, DRAFTS, SAMPLER)}
    made[FALLBACKS].step_kernel = Function(
        lambda table, stride, size=None: calls.append((table, stride, size))
    )
    made[FALLBACKS].ready_kernel = Function(print)
    made[FALLBACKS].other_kernel = Function(lambda a: None)
    made[DRAFTS]._step = SimpleNamespace(kernel=step_kernel)
    made[DRAFTS]._ready = SimpleNamespace(kernel=made[FALLBACKS].ready_kernel)
    made[DRAFTS].step_kernel = step_kernel
    made[SAMPLER]._unknown = SimpleNamespace(kernel=unknown_kernel)
    made[SAMPLER]._other = SimpleNamespace(kernel=other_kernel)
    made[SAMPLER].LIMIT = 32
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    import vllm.triton_utils

    monkeypatch.setattr(vllm.triton_utils, "HAS_TRITON", False)
    return made


def test_a_stale_dispatcher_is_mended_and_no_other_is_touched(modules: dict[str, Any]) -> None:
    assert mend_dispatchers() == ["step_kernel"]
    assert modules[SAMPLER]._other.kernel is other_kernel
    assert modules[DRAFTS]._ready.kernel is modules[FALLBACKS].ready_kernel
    assert modules[DRAFTS].step_kernel is step_kernel
    assert modules[SAMPLER]._unknown.kernel is unknown_kernel
    assert mend_dispatchers() == []


def test_what_it_launches_gets_the_kernels_arguments_by_their_places(
    modules: dict[str, Any], calls: list[Any]
) -> None:
    mend_dispatchers()
    kernel = modules[DRAFTS]._step.kernel
    assert kernel.arg_names == ("table_ptr", "table_stride", "SIZE")
    kernel[(1,)](SIZE=3, table_stride=2, table_ptr=1)
    assert calls == [(1, 2, 3)]


def test_where_triton_runs_nothing_is_touched(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm.triton_utils.HAS_TRITON", True)
    assert mend_dispatchers() == []
    assert modules[DRAFTS]._step.kernel is step_kernel


def test_a_vllm_without_such_functions_is_left_alone(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, FALLBACKS, None)
    assert mend_dispatchers() == []


@pytest.mark.engine  # no engine, but vLLM's kernels are imported: some seconds
def test_this_version_has_nothing_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.triton_utils.HAS_TRITON", False)
    assert mend_dispatchers() == []
