"""Sampling with drafts on CPUs: what a request asks for reaches each of its draft tokens."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from vllm_qwen36_plugin.cpu.sampling import expand_to_tokens, mend_sampling_with_drafts  # noqa: E402
from vllm_qwen36_plugin.errors import CompatError  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM's kernels are imported: some seconds

FALLBACKS = "vllm.utils.cpu_triton_utils"

# What a worker does, in its order; then a function of the sampler on two requests, of two tokens and one.
SAMPLER = """
import sys, torch
from vllm.platforms import current_platform
current_platform.import_kernels()
if "with-plugin" in sys.argv:
    import vllm_qwen36_plugin
    vllm_qwen36_plugin.register()
current_platform.register_triton_kernel_overrides()
from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens
noise = torch.full((1000,), -7.0)
del noise
temperature = torch.tensor([0.5, 0.0])
print(expand_batch_to_tokens(temperature, torch.tensor([2, 3], dtype=torch.int32), 3, 0, 1).tolist())
"""


@settings(deadline=None)
@given(
    requests=st.lists(st.tuples(st.sampled_from([0, 0.0, 0.25, 0.5, 1, 50]), st.integers(0, 4)), min_size=1),
    floating=st.booleans(),
    replace=st.sampled_from([(0, 0), (0, 1), (50, 3)]),
)
def test_each_token_gets_its_requests_value(
    requests: list[tuple[float, int]], floating: bool, replace: tuple[int, int]
) -> None:
    dtype = torch.float32 if floating else torch.int32
    values = torch.tensor([value for value, _ in requests]).to(dtype)
    ends = torch.tensor([count for _, count in requests], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    expected = []
    for value, (_, count) in zip(values.tolist(), requests, strict=True):
        expected += [replace[1] if value == replace[0] else value] * count
    output = torch.full((len(expected),), -7).to(dtype)
    expand_to_tokens(output, values, ends, *replace, MAX_NUM_TOKENS=32)
    assert output.tolist() == expected


def sampled_temperatures(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SAMPLER, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_vllms_sampler_divides_by_the_requests_temperature() -> None:
    assert sampled_temperatures("with-plugin") == "[0.5, 0.5, 1.0]"


def test_without_the_plugin_it_does_not() -> None:
    """Once this fails, vLLM has mended it: take the module out for that version."""
    assert sampled_temperatures() != "[0.5, 0.5, 1.0]"


def stand_in(monkeypatch: pytest.MonkeyPatch, **holds: Any) -> ModuleType:
    module = ModuleType(FALLBACKS)
    vars(module).update(holds)
    monkeypatch.setitem(sys.modules, FALLBACKS, module)
    monkeypatch.setattr("vllm.utils.cpu_triton_utils", module, raising=False)
    return module


def test_an_adapter_already_wrapped_is_replaced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = SimpleNamespace(func=len)
    module = stand_in(monkeypatch, _expand_kernel_impl=len, expand_kernel=stock)
    mend_sampling_with_drafts()
    mend_sampling_with_drafts()
    assert module._expand_kernel_impl is expand_to_tokens
    assert stock.func is expand_to_tokens


@pytest.mark.parametrize("holds", [{}, {"_expand_kernel_impl": len, "expand_kernel": len}])
def test_it_says_so_where_upstream_moved(holds: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, **holds)
    with pytest.raises(CompatError, match="cpu_triton_utils"):
        mend_sampling_with_drafts()
