"""The solver's changes: scales of all groups at once, and a source that must be the known one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_hybrid.upstream import IncompatibleError
from gptq_hybrid.upstream.speedups import _solver, swift_search, swift_solver


def quantizer(mse: float, bits: int) -> Any:
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization.quantizer import Quantizer

    config = QuantizeConfig(bits=bits, group_size=32, sym=True, mse=mse, offload_to_disk=False)
    made = Quantizer(config)
    made.configure(perchannel=True)
    return made


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 200),
    mse=st.sampled_from([0.0, 2.4]),
    bits=st.sampled_from([4, 8]),
    at_once=st.sampled_from([1, 20, 1 << 18]),
    seed=st.integers(0, 1000),
)
def test_groups_searched_together_have_the_scales_of_groups_searched_alone(
    rows: int, columns: int, mse: float, bits: int, at_once: int, seed: int
) -> None:
    import torch

    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    weight[:, ::7] *= 30
    one = quantizer(mse, bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_solver, "_ROWS", at_once)
        found = _solver.group_quantizers(one, weight, 32)
    assert len(found) == -(-columns // 32)
    for number, group in enumerate(found):
        alone = quantizer(mse, bits)
        alone.find_params(weight[:, 32 * number : 32 * number + 32], weight=True)
        assert group.scale.shape == (rows, 1)
        assert torch.equal(group.scale, alone.scale)
        assert torch.equal(group.zero, alone.zero)
        assert torch.equal(group.maxq, alone.maxq)
    # Upstream tells groups apart by the identity of their scales.
    assert len({group.scale.data_ptr() for group in found}) == len(found)


@pytest.mark.parametrize("number", range(len(_solver._CHANGES)))
def test_a_source_without_one_of_the_places_is_refused(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = list(_solver._CHANGES)
    changes[number] = ("a line that gptqmodel has no more\n", changes[number][1])
    monkeypatch.setattr(_solver, "_CHANGES", tuple(changes))
    with pytest.raises(IncompatibleError, match="a line that gptqmodel has no more"), swift_solver():
        pass


def test_a_solver_whose_source_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.quantization.gptq import GPTQ

    names: dict[str, Any] = {}
    exec("def quantize(self, blocksize=128): ...", names)

    def outer(self: Any) -> None: ...

    outer.__wrapped__ = names["quantize"]  # type: ignore[attr-defined]
    monkeypatch.setattr(GPTQ, "quantize", outer)
    with pytest.raises(IncompatibleError, match=r"source of GPTQ\.quantize cannot be read"), swift_solver():
        pass


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 130),
    mse=st.sampled_from([0.0, 2.0, 2.4]),
    bits=st.sampled_from([2, 4, 8]),
    kind=st.sampled_from(["mixed", "positive", "negative", "not a number"]),
    seed=st.integers(0, 1000),
)
def test_a_search_that_does_not_wait_finds_the_same(
    rows: int, columns: int, mse: float, bits: int, kind: str, seed: int
) -> None:
    import torch

    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight = {"positive": weight.abs(), "negative": -weight.abs()}.get(kind, weight)
    weight[0] = 0
    if kind == "not a number":
        weight[-1, 0] = float("nan")
    one, other = quantizer(mse, bits), quantizer(mse, bits)
    one.find_params(weight, weight=True)
    with swift_search():
        other.find_params(weight, weight=True)
        # A copy knows its own number again.
        copied = copy.deepcopy(other)
        copied.find_params(weight, weight=True)
    for found in (other, copied):
        assert found.scale.shape == one.scale.shape == (rows, 1)
        assert torch.equal(found.scale.nan_to_num(-1), one.scale.nan_to_num(-1))
        assert torch.equal(found.zero, one.zero)
        assert torch.equal(found.maxq, one.maxq)


def test_other_searches_are_gptqmodels_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from gptqmodel.quantization.quantizer import Quantizer

    went: list[Any] = []
    monkeypatch.setattr(Quantizer, "find_params", lambda self, x, weight=False: went.append((x, weight)))
    one, activations = quantizer(0.0, 4), torch.ones(2, 4)
    asymmetric = quantizer(0.0, 4)
    asymmetric.qcfg.sym = False
    with swift_search():
        one.find_params(activations)
        asymmetric.find_params(activations, weight=True)
    assert went == [(activations, False), (activations, True)]


@pytest.mark.parametrize("numbers", [[0, 0, 0], [0, 3, 1]])
def test_groups_of_columns_are_int32_in_their_order(numbers: list[int]) -> None:
    import torch

    found = _solver.numbers_on(torch.device("cpu"), numbers)
    assert found.dtype == torch.int32
    assert found.tolist() == numbers


@pytest.mark.parametrize("numbers", [[0, 0, 0], [0, 3, 1]])
def test_on_a_gpu_zeros_are_made_there_and_others_copied_from_pinned_memory(
    numbers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    asked: list[Any] = []
    zeros, to = torch.zeros, torch.Tensor.to

    def pinned(size: int) -> Any:
        asked.append(size)
        return torch.empty(size, dtype=torch.uint8)

    monkeypatch.setattr(_solver, "pinned", pinned)
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: asked.append(non_blocking) or to(self, "cpu")
    )
    found = _solver.numbers_on(torch.device("cuda"), numbers)
    assert found.tolist() == numbers
    assert found.dtype == torch.int32
    assert asked == ([12, True] if any(numbers) else [])
