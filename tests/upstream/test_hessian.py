"""Hessians: what 16-bit inputs lose on tensor cores (nothing but the order of sums), and which way is taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.upstream import IncompatibleError
from gptq_hybrid.upstream.speedups import gram, hessian_products


def bf16(seed: int, rows: int, columns: int) -> Any:
    from bench.quantize.hessian import made_up

    return made_up("heavy-tailed", rows, columns, "cpu", seed)


def as_tf32(values: Any) -> Any:
    """FP32 ``values`` with the 10 fraction bits that TF32 keeps, rounded to nearest even."""
    import torch

    bits = values.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_tf32_holds_every_bf16_input_exactly(seed: int) -> None:
    import torch

    values = bf16(seed, 16, 64).float()
    assert torch.equal(as_tf32(values), values)
    # The emulation does round what has more bits.
    assert not torch.equal(as_tf32(values * 1.2345), values * 1.2345)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_product_of_two_bf16_inputs_is_exact_in_fp32(seed: int) -> None:
    import torch

    values = bf16(seed, 4, 64)
    product = values[0].float() * values[1].float()
    assert torch.equal(product.double(), values[0].double() * values[1].double())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.integers(0, 10_000))
def test_the_order_of_fp32_sums_changes_a_hessian_by_less_than_its_damping(seed: int, order: int) -> None:
    import torch

    values = bf16(seed, 512, 128)
    double = values.double()
    exact = double.T @ double
    shuffled = values[torch.randperm(512, generator=torch.Generator().manual_seed(order))]
    scale = exact.diagonal().sqrt()
    for product in (gram(values, "ieee"), gram(shuffled, "half")):
        error = ((product.double() - exact) / (scale[:, None] * scale)).abs().max()
        # GPTQ adds a hundredth of the mean diagonal.
        assert 0 < float(error) < 1e-5


def test_weights_quantized_with_fp32_sums_lose_what_those_of_float64_lose() -> None:
    from bench.quantize.hessian import compare

    ways = compare("heavy-tailed", "cpu", columns=256, rows=64, batches=3, length=256)["ways"]
    assert abs(ways["ieee"]["loss_ratio"] - 1) < 1e-3
    assert ways["ieee"]["error"] < 1e-5 < 1e-4 < ways["bf16 sums"]["error"]
    assert ways["ieee"]["codes_differ"] < ways["bf16 sums"]["codes_differ"]


@pytest.mark.parametrize(
    ("dtype", "chunk", "ours"),
    [("bfloat16", None, True), ("float16", None, True), ("float32", None, False), ("bfloat16", 64, False)],
)
def test_only_sixteen_bit_inputs_in_one_piece_go_another_way(
    dtype: str, chunk: int | None, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from gptqmodel.quantization.gptq import GPTQ

    from gptq_hybrid.upstream.speedups import _hessian

    taken: list[str] = []
    monkeypatch.setattr(GPTQ, "compute_hessian_xtx", lambda self, matrix: taken.append("upstream"))
    monkeypatch.setattr(_hessian, "gram", lambda matrix, products: taken.append(products))
    solver = SimpleNamespace(resolve_hessian_chunk_size=lambda rows, dtype: chunk)
    with hessian_products("half"):
        GPTQ.compute_hessian_xtx(solver, torch.zeros(4, 8, dtype=getattr(torch, dtype)))
    GPTQ.compute_hessian_xtx(solver, torch.zeros(4, 8))
    assert taken == ["half" if ours else "upstream", "upstream"]


def test_ieee_leaves_gptqmodel_alone() -> None:
    from gptqmodel.quantization.gptq import GPTQ

    before = GPTQ.compute_hessian_xtx
    with hessian_products("ieee"):
        assert GPTQ.compute_hessian_xtx is before


def test_a_way_that_is_none_is_refused_with_the_names_of_those_there_are() -> None:
    with (
        pytest.raises(HybridError, match="'fp8'") as refused,
        hessian_products("fp8"),  # type: ignore[arg-type]
    ):
        pass
    assert "ieee, half" in str(refused.value.remedy)


def test_a_solver_without_the_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.quantization.gptq import GPTQ

    monkeypatch.delattr(GPTQ, "compute_hessian_xtx")
    with pytest.raises(IncompatibleError, match="compute_hessian_xtx"), hessian_products("half"):
        pass


def test_on_a_gpu_half_multiplies_the_inputs_as_they_are_into_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class OnGpu(torch.Tensor):
        is_cuda = True

    values = bf16(0, 8, 16).as_subclass(OnGpu)
    calls: list[Any] = []
    monkeypatch.setattr(
        torch, "mm", lambda a, b, out_dtype: calls.append((a.dtype, b.dtype, a.shape, out_dtype))
    )
    gram(values, "half")
    assert calls == [(torch.bfloat16, torch.bfloat16, (16, 8), torch.float32)]
