"""Packed weights on CPUs: multiplied as GPTQ defines them, int4 only without AVX-512, int8 everywhere."""

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
@pytest.mark.parametrize("transposed", [False, True], ids=["gptq", "compressed-tensors"])
def test_a_layer_is_multiplied_with_what_its_packed_weight_is_by_definition(
    kernel: Any, groups: int, bits: int, transposed: bool
) -> None:
    from vllm.scalar_type import scalar_types

    generator = torch.Generator().manual_seed(groups)
    codes = torch.randint(0, 1 << bits, (64, 24), generator=generator)
    scales = torch.randn(groups, 24, generator=generator)
    per_word = 32 // bits
    packed = torch.zeros(64 // per_word, 24, dtype=torch.int64)
    for row in range(64):
        packed[row // per_word] |= codes[row] << bits * (row % per_word)
    words = torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)
    layer = torch.nn.Module()
    for name, tensor in (("qweight", words), ("scales", scales)):
        stored = tensor.t().contiguous() if transposed else tensor
        parameter = torch.nn.Parameter(stored, requires_grad=False)
        parameter.input_dim, parameter.output_dim = (1, 0) if transposed else (0, 1)
        layer.register_parameter(name, parameter)
    config = SimpleNamespace(
        weight_type=scalar_types.uint4b8 if bits == 4 else scalar_types.uint8b128,
        act_type=torch.float32,
        zero_points=False,
    )
    linear = kernel.DequantizedLinearKernel(config, "qweight", "scales")
    linear.process_weights_after_loading(layer)
    zero = 1 << (bits - 1)
    dense = torch.stack([(codes[k] - zero) * scales[k * groups // 64] for k in range(64)])
    assert torch.equal(linear.apply_weights(layer, torch.eye(64)), dense)


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


def test_the_kernel_is_offered_once_and_first() -> None:
    code = (
        "from vllm.model_executor.kernels import linear\n"
        "from vllm.platforms import PlatformEnum\n"
        "from vllm_qwen36_plugin.cpu.packed_weights import offer\n"
        "offer(); offer()\n"
        "print([kernel.__name__ for kernel in linear._POSSIBLE_KERNELS[PlatformEnum.CPU]][:2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.strip().splitlines()[-1].strip("[]").split(", ")
    assert first == "'DequantizedLinearKernel'"
    assert second != first
