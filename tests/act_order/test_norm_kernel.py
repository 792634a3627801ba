"""The kernel of a norm that writes in order: vLLM's numbers, and what the compiler makes of it for the GPUs.

Triton's interpreter runs it on a CPU; Triton's compiler and ptxas need no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from tests.compiled_kernels import norming, used  # noqa: E402
from tests.interpreted import interpreted_copy  # noqa: E402
from vllm_qwen36_plugin.act_order import norm, norm_kernel  # noqa: E402

EPS, WIDTH = 1e-6, 5120
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
AMPERE, ADA, HOPPER = 80, 89, 90
Kernel = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


def _rounded(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    """Numbers of one type in another, as a GPU rounds: Triton 3.7's interpreter truncates to bfloat16."""
    import numpy as np
    import triton.language as tl

    types = {tl.float32: torch.float32, tl.bfloat16: torch.bfloat16, tl.float16: torch.float16}
    stored = {tl.float32: np.float32, tl.bfloat16: np.uint16, tl.float16: np.float16}
    values = torch.from_numpy(np.ascontiguousarray(data)).view(types[source]).to(types[target])
    whole = torch.int16 if values.element_size() == 2 else torch.int32
    return values.view(whole).numpy().view(stored[target])


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """`launch` of a copy of the module, whose kernel Triton interprets; the module itself stays as it is."""
    from triton.runtime import interpreter

    monkeypatch.setattr(interpreter, "_convert_float", _rounded)
    launch: Kernel = interpreted_copy(norm_kernel, monkeypatch).launch
    return launch


def made(rows: int, k: int, dtype: torch.dtype, *, apart: int = 0) -> dict[str, torch.Tensor]:
    """x, residual, weight and order; ``apart``: what lies between two rows of x."""
    generator = torch.Generator().manual_seed(rows + k)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": (numbers(rows, k + apart) * 3).to(dtype)[:, :k],
        "residual": (numbers(rows, k) * 40).to(dtype),
        "weight": (numbers(k) * 0.3).to(dtype),
        "order": torch.randperm(k, generator=generator).to(torch.int32),
    }


def assert_rounded_alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for where sums in another order round to the neighbour, which is rare."""
    assert actual.dtype == expected.dtype
    # One rounding of the result; in float32, those on the way to it.
    steps = (8 if expected.dtype == torch.float32 else 1) * torch.finfo(expected.dtype).eps
    difference = (actual.double() - expected.double()).abs()
    assert bool((difference <= steps * expected.double().abs()).all())
    if expected.dtype != torch.float32:
        assert int((difference > 0).sum()) <= max(2, actual.numel() // 500)


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "k", "apart"), [(1, WIDTH, 0), (3, 96, 0), (5, 128, 32), (2, 1024, 3)])
def test_it_is_vllms_norm_taken_at_the_order(
    interpreted: Kernel, dtype: torch.dtype, rows: int, k: int, apart: int, add: bool
) -> None:
    pytest.importorskip("vllm")
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm

    data = made(rows, k, dtype, apart=apart)
    residual = data["residual"] if add else None
    with set_current_vllm_config(VllmConfig()):
        stock = GemmaRMSNorm(k, eps=EPS)
        stock.weight = torch.nn.Parameter(data["weight"], requires_grad=False)
        both = stock.forward_native(data["x"], residual)
    natural, total = both if add else (both, None)
    expected = natural[:, data["order"]]
    actual, summed = interpreted(data["x"], residual, data["weight"], data["order"], EPS)
    assert actual.is_contiguous()
    assert_rounded_alike(actual, expected)
    if total is None:
        assert summed is None
    else:
        assert summed is not None
        assert torch.equal(summed, total)
    same, _ = norm.reference(data["x"], residual, data["weight"], data["order"], EPS)
    assert torch.equal(same, expected)


def test_columns_of_a_transposed_input_and_no_rows_at_all(interpreted: Kernel) -> None:
    data = made(4, 64, torch.float32)
    turned = data["x"].T.contiguous().T
    assert turned.stride(1) != 1
    expected = interpreted(data["x"], data["residual"], data["weight"], data["order"], EPS)
    actual = interpreted(turned, data["residual"], data["weight"], data["order"], EPS)
    assert torch.equal(actual[0], expected[0])
    empty, total = interpreted(data["x"][:0], data["residual"][:0], data["weight"], data["order"], EPS)
    assert total is not None
    assert empty.shape == total.shape == (0, 64)


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize(
    ("gpu", "dtype"),
    [(AMPERE, torch.bfloat16), (ADA, torch.bfloat16), (HOPPER, torch.bfloat16), (ADA, torch.float16),
     (HOPPER, torch.float32)],
)  # fmt: skip
def test_it_reads_each_input_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: int, dtype: torch.dtype, add: bool
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    kernel = norming(dtype, add=add)(monkeypatch).compiled(gpu)
    width = dtype.itemsize
    # The gather keeps a row there; 48 KiB is what every GPU grants unasked.
    assert kernel.metadata.shared == triton.next_power_of_2(WIDTH) * width
    ptx = kernel.asm["ptx"]
    loads, stores = (re.findall(rf"{kind}\.global[\w.:]*", ptx) for kind in ("ld", "st"))
    # 16 bytes each, by a thread that has so many of the block's values; the order is of 4 bytes a value.
    values = triton.next_power_of_2(WIDTH) // (32 * norm_kernel.WARPS)
    assert loads == ["ld.global.v4.b32"] * (values * (4 + width * (3 if add else 2)) // 16)
    assert stores == ["st.global.v4.b32"] * (values * width * (2 if add else 1) // 16)
    taken = re.findall(r"ld\.shared\.b(\d+)", ptx)
    assert taken.count(str(8 * width)) >= values  # one by one, at the order


def test_the_warps_that_were_counted_all_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    for warps in (4, 16, 32):
        with pytest.MonkeyPatch.context() as patch:
            launch = norming(torch.bfloat16, add=True, warps=warps)(patch)
        assert used(launch.compiled(HOPPER)).spilled == 0
