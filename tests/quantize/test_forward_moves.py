"""Layers that leave a GPU into pinned memory, and memory that cannot be pinned."""

from __future__ import annotations

from typing import Any

import pytest

from gptq_hybrid.compat import IncompatibleError, _moves, _pinned, pinned_layers


class OnGpu:
    """Mixed into a tensor: says it is on a GPU."""

    is_cuda = True


def on_gpu(value: Any) -> Any:
    import torch

    class Fake(OnGpu, torch.Tensor):
        pass

    return value.as_subclass(Fake)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes that were asked for."""
    import torch

    sizes: list[int] = []

    def given(size: int) -> Any:
        sizes.append(size)
        return torch.empty(size, dtype=torch.uint8)

    monkeypatch.setattr(_moves, "pinned", given)
    return sizes


@pytest.mark.parametrize("shape", [(3, 5), (7,), ()])
@pytest.mark.parametrize("turned", [False, True])
def test_a_tensor_is_copied_whole(shape: tuple[int, ...], turned: bool, pinned: list[int]) -> None:
    import torch

    value = torch.randn(shape).bfloat16()
    value = value.mT if turned and value.ndim == 2 else value
    found = _moves.to_pinned(on_gpu(value))
    assert pinned == [2 * value.numel()]
    assert torch.equal(torch.Tensor(found.float()), value.float())
    assert found.is_contiguous()


def test_what_is_in_main_memory_stays_where_it_is(pinned: list[int]) -> None:
    import torch

    value = torch.ones(3)
    assert _moves.to_pinned(value) is value
    assert pinned == []


def test_a_layer_goes_on_to_what_gptqmodel_does_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from gptqmodel.models.base import BaseQModel

    went: list[Any] = []
    monkeypatch.setattr(BaseQModel, "post_quantize", lambda self, module: went.append(module) or module)
    before, layer = BaseQModel.post_quantize, torch.nn.Linear(2, 2)
    with pinned_layers():
        assert BaseQModel.post_quantize(object(), layer) is layer
    assert went == [layer]
    assert BaseQModel.post_quantize is before


def test_a_system_that_pins_nothing_gives_ordinary_memory_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    empty = torch.empty

    def refused(size: int, *, dtype: Any, pin_memory: bool = False) -> Any:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nand a long story")
        return empty(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", refused)
    _pinned._warn.cache_clear()
    for _ in range(2):
        assert _pinned.pinned(12).nbytes == 12
    (record,) = caplog.records
    assert record.getMessage().endswith("take longer: CUDA error: out of memory")


def test_a_gptqmodel_without_the_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.models.base import BaseQModel

    monkeypatch.delattr(BaseQModel, "post_quantize")
    with pytest.raises(IncompatibleError, match="post_quantize is expected"), pinned_layers():
        pass
