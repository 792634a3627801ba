"""Packing by PyTorch instead of gptqmodel's packer on the CPU: the same bytes, in the same order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_hybrid.upstream import IncompatibleError
from gptq_hybrid.upstream.speedups import _packing, gpu_packing
from gptq_hybrid.upstream.speedups._moves import Departures


def linear_and_scales(rows: int, columns: int, groups: int, bits: int, seed: int) -> tuple[Any, ...]:
    """A linear whose weights are quantized already, as GPTQ leaves them in BF16, and what they were made of."""
    import torch

    random = torch.Generator().manual_seed(seed)
    scales = torch.rand(rows, groups, generator=random) * 0.02 + 1e-4
    scales[0, 0] = 0
    scales[1] *= -1
    zeros = torch.randint(0, 1 << bits, (rows, groups), generator=random).float()
    g_idx = torch.randint(0, groups, (columns,), generator=random, dtype=torch.int32)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=random)
    # Some are out of range, which both must hold at the ends of it.
    codes[2, ::5] += 1 << bits
    linear = torch.nn.Linear(columns, rows, bias=bool(seed % 2), dtype=torch.bfloat16)
    values = (codes - zeros[:, g_idx.long()]) * scales[:, g_idx.long()]
    linear.weight.data = values.to(torch.bfloat16)
    return linear, scales, zeros, g_idx


def packer(bits: int, rows: int, columns: int) -> Any:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    return TorchLinear(
        bits=bits, group_size=32, sym=True, desc_act=True, in_features=columns, out_features=rows,
        bias=False, pack_dtype=_int32(), register_buffers=False,
    )  # fmt: skip


def _int32() -> Any:
    import torch

    return torch.int32


@settings(max_examples=20, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8]),
    rows=st.sampled_from([32, 96]),
    columns=st.sampled_from([32, 160]),
    groups=st.integers(1, 5),
    at_once=st.sampled_from([1, 3000, 1 << 22]),
    seed=st.integers(0, 1000),
)
def test_words_are_those_of_gptqmodels_packer(
    bits: int, rows: int, columns: int, groups: int, at_once: int, seed: int
) -> None:
    import torch

    linear, scales, zeros, g_idx = linear_and_scales(rows, columns, groups, bits, seed)
    theirs = packer(bits, rows, columns)
    theirs.pack_block(linear, scales, zeros, g_idx)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_packing, "_WEIGHTS", at_once)
        qweight, qzeros = _packing.packed(
            linear.weight.detach(), scales, zeros, g_idx, bits, torch.device("cpu")
        )
    assert torch.equal(qweight, theirs.qweight)
    assert torch.equal(qzeros, theirs.qzeros)
    assert qweight.is_contiguous()
    assert qzeros.is_contiguous()


def on_a_gpu() -> Departures:
    import torch

    left = Departures()
    left.device = torch.device("cuda", 0)
    return left


class Stream:
    def __init__(self, device: Any) -> None: ...


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What asks for a GPU gets the CPU; returns the calls that were computed there."""
    import contextlib

    import torch

    calls: list[Any] = []
    computed = _packing.packed

    def packed(*args: Any) -> Any:
        calls.append(args)
        return computed(*args[:-1], torch.device("cpu"))

    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(_packing, "_stream", Stream)
    monkeypatch.setattr(_packing, "packed", packed)
    return calls


@pytest.mark.parametrize("seed", [0, 1])
def test_a_module_gets_the_buffers_it_gets_from_gptqmodel_in_the_same_order(
    as_on_a_gpu: list[Any], seed: int
) -> None:
    import torch

    made = linear_and_scales(32, 64, 2, 4, seed)
    theirs, ours = packer(4, 32, 64), packer(4, 32, 64)
    theirs.pack_block(*made)
    with gpu_packing(on_a_gpu()):
        ours.pack_block(*made)
    assert len(as_on_a_gpu) == 1
    assert [*ours._buffers] == [*theirs._buffers]
    for name, tensor in theirs._buffers.items():
        our = ours._buffers[name]
        assert (our is None) == (tensor is None)
        if tensor is not None:
            assert our.dtype == tensor.dtype
            assert torch.equal(our, tensor), name


@pytest.mark.parametrize(
    "what",
    ["planar", "3 bit", "a group that is not there", "inputs without a group", "a convolution", "a full GPU"],
)
def test_what_it_was_not_written_for_goes_gptqmodels_way(
    as_on_a_gpu: list[Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from gptqmodel.nn_modules.qlinear import PackableQuantLinear

    went: list[Any] = []

    def pack_block(
        self: Any, linear: Any, scales: Any, zeros: Any, g_idx: Any, block_in: int = 1, workers: int = 1
    ) -> None:
        went.append(self)

    monkeypatch.setattr(PackableQuantLinear, "pack_block", pack_block)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    linear, scales, zeros, g_idx = linear_and_scales(32, 64, 2, 4, 0)
    module = SimpleNamespace(bits=4, planar=False, pack_dtype=torch.int32)
    if what == "planar":
        module.planar = True
    elif what == "3 bit":
        module.bits = 3
    elif what == "a group that is not there":
        g_idx[5] = 2
    elif what == "inputs without a group":
        g_idx = g_idx[:-1]
    elif what == "a convolution":
        linear = torch.nn.Conv1d(32, 32, 1)
    else:
        monkeypatch.setattr(_packing, "packed", full)
    with gpu_packing(on_a_gpu()):
        PackableQuantLinear.pack_block(module, linear, scales, zeros, g_idx)
    assert went == [module]
    assert not as_on_a_gpu


def test_before_a_layer_left_a_gpu_it_is_gptqmodels_packer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_packing, "packed", None)
    made = linear_and_scales(32, 64, 2, 4, 0)
    module = packer(4, 32, 64)
    with gpu_packing(Departures()):
        module.pack_block(*made)
    assert module.qweight.shape == (8, 32)


def test_another_failure_is_not_hidden(as_on_a_gpu: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(_packing, "packed", broken)
    with gpu_packing(on_a_gpu()), pytest.raises(RuntimeError, match="illegal memory access"):
        packer(4, 32, 64).pack_block(*linear_and_scales(32, 64, 2, 4, 0))


def test_a_packer_that_takes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.nn_modules.qlinear import PackableQuantLinear

    monkeypatch.setattr(PackableQuantLinear, "pack_block", lambda self, linear, tensors: None)
    with pytest.raises(IncompatibleError, match="pack_block is expected to take"), gpu_packing(on_a_gpu()):
        pass
