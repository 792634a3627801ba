"""Int4 without AVX-512: the unpacked weight is the GPTQ definition's, and only the CPU build is touched."""

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
    from vllm_qwen36_plugin.cpu_int4 import kernel

    return kernel


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_unpacking_follows_the_gptq_definition(kernel: Any, groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    values = torch.randint(0, 16, (64, 24), generator=generator)
    scales = torch.randn(groups, 24, generator=generator)
    packed = torch.zeros(8, 24, dtype=torch.int64)
    for row in range(64):
        packed[row // 8] |= values[row] << 4 * (row % 8)
    packed = torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)
    want = torch.stack([(values[k] - 8) * scales[k * groups // 64] for k in range(64)], dim=1)
    assert torch.equal(kernel.dequantize_int4(packed, scales), want)


def test_it_steps_aside_where_vllm_has_its_own(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.scalar_type import scalar_types

    config = SimpleNamespace(weight_type=scalar_types.uint4b8, zero_points=False)
    monkeypatch.setattr(kernel, "stock_gemm_missing", lambda: True)
    assert kernel.DequantizedInt4LinearKernel.can_implement(config)[0]
    assert not kernel.DequantizedInt4LinearKernel.can_implement(
        SimpleNamespace(weight_type=scalar_types.uint4b8, zero_points=True)
    )[0]
    monkeypatch.setattr(kernel, "stock_gemm_missing", lambda: False)
    assert not kernel.DequantizedInt4LinearKernel.can_implement(config)[0]


def test_importing_the_model_class_offers_the_kernel_once_and_is_vllms_own() -> None:
    code = (
        "from vllm.model_executor.kernels import linear\n"
        "from vllm.platforms import PlatformEnum\n"
        "import importlib, vllm_qwen36_plugin.cpu_int4.models as models\n"
        "importlib.reload(models)\n"
        "from vllm.model_executor.models.qwen3_5 import Qwen3_5ForConditionalGeneration as stock\n"
        "assert models.Qwen3_5ForConditionalGeneration is stock\n"
        "print([kernel.__name__ for kernel in linear._POSSIBLE_KERNELS[PlatformEnum.CPU]][:2])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, second = said.strip().splitlines()[-1].strip("[]").split(", ")
    assert first == "'DequantizedInt4LinearKernel'"
    assert second != first
