"""vLLM's parameters of a packed linear, whichever format they were loaded from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from gptq_hybrid.packing import pack  # noqa: E402
from vllm_qwen36_plugin.upstream.linear_kernels import in_gptq_layout  # noqa: E402


def packed(groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.randint(0, 16, (64, 128), generator=torch.Generator().manual_seed(groups))
    parts = pack(codes, torch.rand(64, groups), 4)
    return parts["qweight"], parts["scales"]


@pytest.mark.parametrize("transposed", [False, True], ids=["gptq", "compressed-tensors"])
def test_both_formats_parameters_come_as_gptq_has_them(transposed: bool) -> None:
    words, scales = packed(4)
    into, out = (1, 0) if transposed else (0, 1)
    stored = [tensor.t().contiguous() if transposed else tensor for tensor in (words, scales)]
    parameters = [SimpleNamespace(data=tensor, input_dim=into, output_dim=out) for tensor in stored]
    parts = in_gptq_layout(*parameters)
    assert torch.equal(parts[0], words)
    assert torch.equal(parts[1], scales)


def test_a_scale_for_all_inputs_may_have_no_input_dimension() -> None:
    """vLLM's `ChannelQuantScaleParameter`."""
    words, scales = packed(1)
    parts = in_gptq_layout(
        SimpleNamespace(data=words, input_dim=0), SimpleNamespace(data=scales, output_dim=1)
    )
    assert torch.equal(parts[1], scales)
