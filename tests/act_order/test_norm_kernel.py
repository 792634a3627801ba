"""The kernel of a norm that writes in order: vLLM's numbers, and what the compiler makes of it for the GPUs.

Triton's interpreter runs it on a CPU; Triton's compiler and ptxas need no GPU.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

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


def assert_rounded_alike(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal but for where sums in another order round to the neighbour, which is rare."""
    assert found.dtype == wanted.dtype
    # One rounding of the result; in float32, those on the way to it.
    steps = (8 if wanted.dtype == torch.float32 else 1) * torch.finfo(wanted.dtype).eps
    difference = (found.double() - wanted.double()).abs()
    assert bool((difference <= steps * wanted.double().abs()).all())
    if wanted.dtype != torch.float32:
        assert int((difference > 0).sum()) <= max(2, found.numel() // 500)


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "k", "apart"), [(1, WIDTH, 0), (3, 96, 0), (5, 128, 32), (2, 1024, 3)])
def test_it_is_vllms_norm_taken_at_the_order(
    interpreted: Kernel, dtype: torch.dtype, rows: int, k: int, apart: int, add: bool
) -> None:
    pytest.importorskip("vllm")
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm

    given = made(rows, k, dtype, apart=apart)
    residual = given["residual"] if add else None
    with set_current_vllm_config(VllmConfig()):
        stock = GemmaRMSNorm(k, eps=EPS)
        stock.weight = torch.nn.Parameter(given["weight"], requires_grad=False)
        both = stock.forward_native(given["x"], residual)
    wanted, total = both if add else (both, None)
    found, summed = interpreted(given["x"], residual, given["weight"], given["order"], EPS)
    assert found.is_contiguous()
    assert_rounded_alike(found, wanted[:, given["order"]])
    if total is None:
        assert summed is None
    else:
        assert summed is not None
        assert torch.equal(summed, total)
    same, _ = norm.reference(given["x"], residual, given["weight"], given["order"], EPS)
    assert torch.equal(same, wanted[:, given["order"]])


def test_columns_of_a_transposed_input_and_no_rows_at_all(interpreted: Kernel) -> None:
    given = made(4, 64, torch.float32)
    turned = given["x"].T.contiguous().T
    assert turned.stride(1) != 1
    wanted = interpreted(given["x"], given["residual"], given["weight"], given["order"], EPS)
    found = interpreted(turned, given["residual"], given["weight"], given["order"], EPS)
    assert torch.equal(found[0], wanted[0])
    empty, total = interpreted(given["x"][:0], given["residual"][:0], given["weight"], given["order"], EPS)
    assert total is not None
    assert empty.shape == total.shape == (0, 64)


def compiled(gpu: int, dtype: torch.dtype, *, add: bool, warps: int = norm_kernel.WARPS) -> Any:
    """As a launch for the 27B specializes it: pointers and strides that 16 divides."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = norm_kernel._norm
    constants = {"k": WIDTH, "block": triton.next_power_of_2(WIDTH), "add": add}
    signature = dict.fromkeys(kernel.arg_names[:6], f"*{TYPES[dtype]}")
    signature |= {"order_ptr": "*i32", "x_stride": "i32", "residual_stride": "i32", "eps": "fp32"}
    signature |= dict.fromkeys(constants, "constexpr")
    assert list(signature) == kernel.arg_names
    divisible = {(place,): [["tt.divisibility", 16]] for place in range(8)}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    return triton.compile(source, target=GPUTarget("cuda", gpu, 32), options={"num_warps": warps})


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers a thread of the one kernel in it, and what it spills."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.is_file():
        pytest.skip(f"{tool} is not there")
    (folder / "kernel.cubin").write_bytes(cubin)
    said = subprocess.run(
        [tool, "--dump-resource-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    assert set(found) == {"REG", "STACK", "LOCAL"}, said
    return found


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize(
    ("gpu", "dtype"),
    [(AMPERE, torch.bfloat16), (ADA, torch.bfloat16), (HOPPER, torch.bfloat16), (ADA, torch.float16),
     (HOPPER, torch.float32)],
)  # fmt: skip
def test_it_compiles_spills_nothing_and_reads_each_input_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: int, dtype: torch.dtype, add: bool
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    found = compiled(gpu, dtype, add=add)
    used = resources(found.asm["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    width = dtype.itemsize
    # The gather keeps a row there; 48 KiB is what every GPU grants unasked.
    assert found.metadata.shared == triton.next_power_of_2(WIDTH) * width
    ptx = found.asm["ptx"]
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
        used = resources(compiled(HOPPER, torch.bfloat16, add=True, warps=warps).asm["cubin"], tmp_path)
        assert used["STACK"] == used["LOCAL"] == 0
