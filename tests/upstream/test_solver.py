"""The patched solver: scales of all groups at once, and a source that a patch must apply to."""

from __future__ import annotations

import copy
import inspect
import traceback
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_hybrid.upstream import IncompatibleError, installed_version
from gptq_hybrid.upstream.patching import Hunk, Patch, PatchError, shipped_patches
from gptq_hybrid.upstream.speedups import solver, swift_search, swift_solver


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
        patch.setattr(solver, "_AT_ONCE", at_once)
        groups = solver.group_quantizers(one, weight, 32)
    assert len(groups) == -(-columns // 32)
    for number, group in enumerate(groups):
        alone = quantizer(mse, bits)
        alone.find_params(weight[:, 32 * number : 32 * number + 32], weight=True)
        assert group.scale.shape == (rows, 1)
        assert torch.equal(group.scale, alone.scale)
        assert torch.equal(group.zero, alone.zero)
        assert torch.equal(group.maxq, alone.maxq)
    # Upstream tells groups apart by the identity of their scales.
    assert len({group.scale.data_ptr() for group in groups}) == len(groups)


def installed_patch() -> Patch:
    """The shipped patch that applies to the installed gptqmodel."""
    from gptqmodel.quantization import gptq

    for patch in shipped_patches("solver.patch"):
        try:
            patch.apply(inspect.getsource(gptq))
        except PatchError:
            continue
        return patch
    raise AssertionError("no shipped patch applies to the installed gptqmodel")


def test_the_patch_for_the_installed_version_is_the_one_that_applies() -> None:
    assert installed_patch().label == f"gptqmodel-{installed_version()}/solver.patch"


def test_a_source_without_one_of_the_places_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    patch = installed_patch()
    for number, hunk in enumerate(patch.hunks):
        hunks = list(patch.hunks)
        hunks[number] = Hunk(hunk.line, (*hunk.before, "a line that gptqmodel has no more"), hunk.after)
        other = Patch("other/solver.patch", patch.path, tuple(hunks))
        monkeypatch.setattr(solver, "shipped_patches", lambda name, other=other: [other])
        expected = (
            f"no patch of GPTQ.quantize applies: other/solver.patch: .* line {hunk.line} are there 0 times"
        )
        with pytest.raises(IncompatibleError, match=expected), swift_solver():
            pass


def test_a_later_patch_that_does_not_apply_leaves_the_next_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.quantization.gptq import GPTQ

    patch = installed_patch()
    later = Patch("later/solver.patch", patch.path, (Hunk(1, ("not there",), ()),))
    monkeypatch.setattr(solver, "shipped_patches", lambda name: [later, patch])
    before = GPTQ.quantize
    with swift_solver():
        assert GPTQ.quantize is not before
    assert GPTQ.quantize is before


def test_the_patch_changes_nothing_but_the_solver() -> None:
    from gptqmodel.quantization import gptq

    source = inspect.getsource(gptq)
    quantize = inspect.getsource(inspect.unwrap(gptq.GPTQ.quantize))
    before, after = source.split(quantize)
    patched = installed_patch().apply(source)
    assert patched != source
    assert patched.startswith(before)
    assert patched.endswith(after)


def test_a_traceback_through_the_patched_solver_shows_its_lines() -> None:
    from gptqmodel.quantization.gptq import GPTQ

    with swift_solver():
        try:
            GPTQ.quantize(object())
        except AttributeError:
            shown = traceback.format_exc()
    assert f"gptqmodel-{installed_version()}/solver.patch>" in shown
    assert "if isinstance(self.module, nn.Embedding):" in shown


def test_a_solver_that_another_module_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.quantization.gptq import GPTQ

    def quantize(self: Any, blocksize: int = 128) -> None: ...

    def outer(self: Any) -> None: ...

    outer.__wrapped__ = quantize  # type: ignore[attr-defined]
    monkeypatch.setattr(GPTQ, "quantize", outer)
    with (
        pytest.raises(IncompatibleError, match=r"the one that gptqmodel\.quantization\.gptq defines"),
        swift_solver(),
    ):
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
        # A copy has to note its own number again.
        copied = copy.deepcopy(other)
        copied.find_params(weight, weight=True)
    for searched in (other, copied):
        assert searched.scale.shape == one.scale.shape == (rows, 1)
        assert torch.equal(searched.scale.nan_to_num(-1), one.scale.nan_to_num(-1))
        assert torch.equal(searched.zero, one.zero)
        assert torch.equal(searched.maxq, one.maxq)


def test_a_quantizer_that_waits_for_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.quantization.quantizer import Quantizer

    def init(self: Any) -> None:
        self._maxq_value = 0

    monkeypatch.setattr(Quantizer, "__init__", init)
    before = Quantizer.find_params
    with swift_search():
        assert Quantizer.find_params is before


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

    on_cpu = solver.numbers_on(torch.device("cpu"), numbers)
    assert on_cpu.dtype == torch.int32
    assert on_cpu.tolist() == numbers


@pytest.mark.parametrize("numbers", [[0, 0, 0], [0, 3, 1]])
def test_on_a_gpu_zeros_are_made_there_and_others_copied_from_pinned_memory(
    numbers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    calls: list[Any] = []
    zeros, to = torch.zeros, torch.Tensor.to

    def pinned(size: int) -> Any:
        calls.append(size)
        return torch.empty(size, dtype=torch.uint8)

    monkeypatch.setattr(solver, "pinned", pinned)
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: calls.append(non_blocking) or to(self, "cpu")
    )
    on_gpu = solver.numbers_on(torch.device("cuda"), numbers)
    assert on_gpu.tolist() == numbers
    assert on_gpu.dtype == torch.int32
    assert calls == ([12, True] if any(numbers) else [])
