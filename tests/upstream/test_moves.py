"""Layers that leave a GPU into pinned memory, and memory that cannot be pinned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from gptq_hybrid.upstream import IncompatibleError
from gptq_hybrid.upstream.speedups import _moves, _pinned, pinned_layers


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
    """Sizes of pinned memory that was allocated."""
    import torch

    sizes: list[int] = []

    def allocate(size: int) -> Any:
        sizes.append(size)
        return torch.empty(size, dtype=torch.uint8)

    monkeypatch.setattr(_moves, "pinned", allocate)
    return sizes


@pytest.mark.parametrize("shape", [(3, 5), (7,), ()])
@pytest.mark.parametrize("turned", [False, True])
def test_a_tensor_is_copied_whole(shape: tuple[int, ...], turned: bool, pinned: list[int]) -> None:
    import torch

    value = torch.randn(shape).bfloat16()
    value = value.mT if turned and value.ndim == 2 else value
    copy = _moves.to_pinned(on_gpu(value))
    assert pinned == [2 * value.numel()]
    assert torch.equal(torch.Tensor(copy.float()), value.float())
    assert copy.is_contiguous()


@dataclass
class Model:
    """What of gptqmodel's model is looked at, around one layer that says it is on a GPU."""

    model: Any
    quantize_config: Any

    @classmethod
    def of_a_layer(cls, dynamic: dict[str, Any]) -> Model:
        import torch
        from gptqmodel import QuantizeConfig

        layer = torch.nn.Module()
        for name, size in (("q_proj", 64), ("k_proj", 64), ("small", 8)):
            linear = torch.nn.Linear(size, 64, bias=False, dtype=torch.bfloat16)
            linear.weight = torch.nn.Parameter(on_gpu(linear.weight.detach()))
            layer.add_module(name, linear)
        layer.norm = torch.nn.LayerNorm(64)
        whole = torch.nn.Module()
        whole.layers = torch.nn.ModuleList([torch.nn.Module(), layer])
        return cls(whole, QuantizeConfig(bits=4, group_size=64, dynamic=dynamic))


def test_weights_that_are_soon_packed_are_copied_waited_for_and_the_rest_left_to_gptqmodel(
    pinned: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from gptqmodel.models.base import BaseQModel

    model = Model.of_a_layer({r"-:^layers\.1\.k_proj$": {}})
    layer = model.model.layers[1]
    went: list[Any] = []

    def post_quantize(self: Any, module: Any) -> Any:
        went.append({name: type(one.weight.data).__name__ for name, one in module.named_children()})
        return module

    monkeypatch.setattr(BaseQModel, "post_quantize", post_quantize)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: went.append(device))
    monkeypatch.setattr(_moves, "_LEAST", 2 * 64 * 64)
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", property(lambda self: True), raising=False)
    before = {name: one.weight.detach().float().clone() for name, one in layer.named_children()}
    with pinned_layers() as left:
        assert left.device is None
        assert BaseQModel.post_quantize(model, layer) is layer
    # One linear: another is left in BF16 by its rule, one is small, and a norm is none.
    assert pinned == [2 * 64 * 64]
    assert left.device is not None
    assert went[0] == left.device
    assert went[1].keys() == before.keys()
    for name, one in layer.named_children():
        assert torch.equal(torch.Tensor(one.weight.detach().float()), torch.Tensor(before[name]))


def test_a_layer_in_main_memory_is_gptqmodels_alone(
    pinned: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from gptqmodel.models.base import BaseQModel

    went: list[Any] = []
    monkeypatch.setattr(BaseQModel, "post_quantize", lambda self, module: went.append(module) or module)
    before, layer = BaseQModel.post_quantize, torch.nn.Linear(2048, 2048)
    with pinned_layers() as left:
        assert BaseQModel.post_quantize(Model(layer, None), layer) is layer
    assert went == [layer]
    assert pinned == []
    assert left.device is None
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
