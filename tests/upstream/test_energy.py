"""What a module's error is held against, by tensor cores: two parts of a Hessian are as good as all of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_hybrid.upstream._energy import energy, in_two_parts, product


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 90), seed=st.integers(0, 1000))
def test_a_product_in_two_parts_has_sixteen_bits(rows: int, columns: int, seed: int) -> None:
    import torch

    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(64, columns, generator=random)
    inputs[:, ::7] *= 50
    hessian = inputs.T @ inputs
    weight = torch.randn(rows, columns, generator=random).bfloat16()
    exact = weight.double() @ hessian.double()
    # Of the sum of magnitudes: a part of BF16 leaves 2**-9, two leave 2**-17, and FP32 sums some 2**-22.
    size = weight.double().abs() @ hessian.double().abs()
    assert ((product(weight, *in_two_parts(hessian)).double() - exact).abs() <= size * 2.0**-16).all()


def test_one_part_would_not_do() -> None:
    import torch

    hessian = torch.full((1, 1), 1 + 2.0**-8)
    weight = torch.ones(1, 1).bfloat16()
    assert float(product(weight, *in_two_parts(hessian))) == 1 + 2.0**-8
    assert float(weight.float() @ hessian.bfloat16().float()) != 1 + 2.0**-8


class OnGpu:
    is_cuda = True


@pytest.mark.parametrize("columns", [5, 64])
def test_on_a_gpu_the_energy_is_the_same_to_six_digits(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from gptq_hybrid.upstream import _energy

    class Fake(OnGpu, torch.Tensor):
        pass

    went: list[tuple[int, int]] = []
    original = _energy.product

    def counted(rows: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        went.append((rows.shape[0], parts[0].shape[1]))
        return original(*(part.as_subclass(torch.Tensor) for part in (rows, *parts)))

    monkeypatch.setattr(_energy, "product", counted)
    monkeypatch.setattr(_energy, "_COLUMNS", 30)
    inputs = torch.randn(200, columns, generator=torch.Generator().manual_seed(0))
    hessian = inputs.T @ inputs
    weight = torch.randn(47, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    on_gpu = energy(weight.as_subclass(Fake), hessian.as_subclass(Fake))
    assert sum(rows * some for rows, some in went) == 47 * columns
    assert len(went) == 2 * -(-columns // 30)
    assert on_gpu == pytest.approx(energy(weight, hessian), rel=1e-6)
