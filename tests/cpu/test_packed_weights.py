"""Packed weights on CPUs: unpacked as GPTQ defines them, int4 only without AVX-512, int8 everywhere."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

pytestmark = pytest.mark.engine  # no engine, but vLLM's kernels are imported: some seconds


@pytest.fixture
def kernel() -> Any:
    from vllm_qwen36_plugin.cpu import packed_weights as kernel

    return kernel


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_unpacking_follows_the_gptq_definition(kernel: Any, groups: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    values = torch.randint(0, 1 << bits, (64, 24), generator=generator)
    scales = torch.randn(groups, 24, generator=generator)
    per_word = 32 // bits
    packed = torch.zeros(64 // per_word, 24, dtype=torch.int64)
    for row in range(64):
        packed[row // per_word] |= values[row] << bits * (row % per_word)
    packed = torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)
    zero = 1 << (bits - 1)
    want = torch.stack([(values[k] - zero) * scales[k * groups // 64] for k in range(64)], dim=1)
    assert torch.equal(kernel.dequantize_words(packed, scales, bits), want)


@pytest.mark.parametrize("bits", [4, 8])
def test_unpacking_agrees_with_the_producers_own(kernel: Any, bits: int) -> None:
    from gptq_hybrid.packing import dequantize, pack, quantize_rtn

    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(bits))
    parts = pack(*quantize_rtn(weight, bits, 128), bits)
    ours = kernel.dequantize_words(parts["qweight"], parts["scales"].float(), bits)
    assert torch.equal(ours, dequantize(**parts, bits=bits))


def test_it_steps_aside_where_vllm_has_its_own(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.scalar_type import scalar_types

    def takes(weight_type: Any, **changes: Any) -> bool:
        config = SimpleNamespace(**{"weight_type": weight_type, "zero_points": False, **changes})
        return bool(kernel.DequantizedLinearKernel.can_implement(config)[0])

    four, eight = scalar_types.uint4b8, scalar_types.uint8b128
    monkeypatch.setattr(kernel, "stock_gemm_missing", lambda: True)
    assert takes(four)
    assert takes(eight)
    assert not takes(four, zero_points=True)
    assert not takes(eight, has_g_idx=True)
    assert not takes(scalar_types.uint4)
    monkeypatch.setattr(kernel, "stock_gemm_missing", lambda: False)
    assert not takes(four)
    assert takes(eight)


def test_vllms_own_kernel_still_takes_four_bits_alone() -> None:
    """The reason to offer int8 where vLLM has its int4 GEMM; should it learn 8 bits, ours is to go."""
    from vllm.model_executor.kernels.linear.mixed_precision import cpu
    from vllm.scalar_type import scalar_types

    assert scalar_types.uint8b128 not in cpu._CPUWNA16_SUPPORTED_QUANT_TYPES


def test_eight_bits_pass_vllms_own_question_once_they_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.quantization import auto_gptq
    from vllm.scalar_type import scalar_types

    from vllm_qwen36_plugin.upstream.gptq_types import allow_weight_type

    asked: list[Any] = []

    def stock(quant_type: Any, group_size: int) -> None:
        asked.append((quant_type, group_size))
        raise ValueError("only 4 bits")

    monkeypatch.setattr(auto_gptq, "verify_marlin_supported", stock)
    allow_weight_type(scalar_types.uint8b128)
    first = auto_gptq.verify_marlin_supported
    allow_weight_type(scalar_types.uint8b128)
    assert auto_gptq.verify_marlin_supported is first
    auto_gptq.verify_marlin_supported(quant_type=scalar_types.uint8b128, group_size=128)
    with pytest.raises(ValueError, match="only 4 bits"):
        auto_gptq.verify_marlin_supported(quant_type=scalar_types.uint4b8, group_size=96)
    assert asked == [(scalar_types.uint4b8, 96)]


def test_a_gptq_module_without_that_question_is_a_compat_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.quantization import auto_gptq

    from vllm_qwen36_plugin.errors import CompatError
    from vllm_qwen36_plugin.upstream.gptq_types import allow_weight_type

    monkeypatch.delattr(auto_gptq, "verify_marlin_supported")
    with pytest.raises(CompatError, match="verify_marlin_supported"):
        allow_weight_type("a type")


def test_importing_the_model_class_offers_the_kernel_once_and_is_vllms_own() -> None:
    code = (
        "from vllm.model_executor.kernels import linear\n"
        "from vllm.platforms import PlatformEnum\n"
        "import importlib, vllm_qwen36_plugin.cpu.models as models\n"
        "importlib.reload(models)\n"
        "from vllm.model_executor.models.qwen3_5 import Qwen3_5ForConditionalGeneration as stock\n"
        "assert models.Qwen3_5ForConditionalGeneration is stock\n"
        "print([kernel.__name__ for kernel in linear._POSSIBLE_KERNELS[PlatformEnum.CPU]][:2])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, second = said.strip().splitlines()[-1].strip("[]").split(", ")
    assert first == "'DequantizedLinearKernel'"
    assert second != first
