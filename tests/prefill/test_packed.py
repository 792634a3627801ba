"""Weights as checkpoints store them, made dense: the numbers that routes and the self-test are compared with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from gptq_hybrid.packing import dequantize, pack, quantize_rtn  # noqa: E402
from vllm_qwen36_plugin.packed import as_gptq, dequantize_words  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402

from .made import Weight, checkpoint_codes, same  # noqa: E402


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [-1, 32, 64])
def test_each_value_is_one_product_rounded_once(bits: int, group_size: int, dtype: str) -> None:
    weight = Weight.random(Shape("marlin", 128, 64, bits, group_size, dtype))
    assert torch.equal(checkpoint_codes(weight.words(), bits), weight.codes)
    result = dequantize_words(weight.words(), weight.scales, bits)
    assert result.is_contiguous()
    assert same(result, weight.dense().to(getattr(torch, dtype)))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_producers_own_files_are_read_the_same(bits: int) -> None:
    dense = torch.randn(64, 256, generator=torch.Generator().manual_seed(bits))
    parts = pack(*quantize_rtn(dense, bits, 128), bits)
    scales = parts["scales"].float()
    assert torch.equal(dequantize_words(parts["qweight"], scales, bits), dequantize(**parts, bits=bits))


@pytest.mark.parametrize("transposed", [False, True], ids=["gptq", "compressed-tensors"])
def test_both_formats_parameters_come_as_gptq_has_them(transposed: bool) -> None:
    weight = Weight.random(Shape("marlin", 128, 64, 4, 32, "bfloat16"))
    words, scales = weight.words(), weight.scales
    if transposed:
        words, scales = words.t().contiguous(), scales.t().contiguous()
    into, out = (1, 0) if transposed else (0, 1)
    packed = SimpleNamespace(data=words, input_dim=into, output_dim=out)
    result = as_gptq(packed, SimpleNamespace(data=scales, input_dim=into, output_dim=out))
    assert torch.equal(result[0], weight.words())
    assert torch.equal(result[1], weight.scales)


def test_a_scale_for_all_rows_may_have_no_input_dimension() -> None:
    """vLLM's `ChannelQuantScaleParameter`."""
    weight = Weight.random(Shape("marlin", 128, 64, 4, -1, "bfloat16"))
    packed = SimpleNamespace(data=weight.words(), input_dim=0)
    _, scales = as_gptq(packed, SimpleNamespace(data=weight.scales, output_dim=1))
    assert torch.equal(scales, weight.scales)
