"""On a GPU: activations in e4m3, against vLLM's op."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu

from vllm_qwen36_plugin.prefill.activations import quantize_tokens  # noqa: E402
from vllm_qwen36_plugin.upstream import scaled_mm  # noqa: E402

from . import real_gpu  # noqa: E402
from .real_gpu import fp8_here  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [64, 1000, 5120, 6144, 8704, 17408])
def test_tokens_are_quantized_as_by_vllms_op(k: int, dtype: torch.dtype) -> None:
    if not fp8_here():
        pytest.skip("this GPU does not multiply e4m3")
    x = torch.randn(70, k, dtype=dtype, device=real_gpu.DEVICE) * torch.logspace(
        -4, 3, 70, dtype=dtype, device=real_gpu.DEVICE
    ).unsqueeze(1)
    x[3] = 0
    x[4, 1:] = 0
    x[5, -1] = float("nan")
    x[6, 0] = float("inf")
    for _ in range(2):  # looked up by Triton, and past it
        quantized, scales = quantize_tokens(x)
        theirs, their_scales = scaled_mm.quantize_tokens(x)
        assert torch.equal(scales, their_scales)
        assert bool(quantized[5, -1].isnan())
        assert not bool(quantized[6, 0].float().isfinite())
        good = [token for token in range(70) if token not in (5, 6)]
        ours, expected = quantized[good].float(), theirs[good].float()
        assert torch.equal(quantized[5, :-1].float(), theirs[5, :-1].float())
        # A quotient on the edge of two values may fall to either: it is a product here.
        apart = (ours - expected).abs() > 0
        assert float(apart.float().mean()) < 2e-3
        assert bool((ours[apart] - expected[apart]).abs().le(expected[apart].abs() / 8 + 2**-9).all())
