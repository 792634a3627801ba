"""A layer's mixer, run once: which inputs are kept, where, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gptq_hybrid.upstream import IncompatibleError
from gptq_hybrid.upstream.speedups import ForwardCounts, mixer_once


class Loop:
    """A layer's passes as gptqmodel makes them, around a layer of two linears instead of the model's."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        import torch
        from gptqmodel.looper.forward_executor import ForwardExecutor

        class Mixer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.in_proj_qkv = torch.nn.Linear(4, 4)
                self.out_proj = torch.nn.Linear(4, 4)
                self.ran = 0

            def forward(self, hidden_states: Any) -> Any:
                self.ran += 1
                return self.out_proj(self.in_proj_qkv(hidden_states))

        class Layer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear_attn = Mixer()

            def forward(self, hidden_states: Any) -> Any:
                return hidden_states + self.linear_attn(hidden_states=hidden_states)

        class Processor:
            index: int | None = None

            def current_batch_index(self) -> int | None:
                return self.index

        def run_single(
            self: Any,
            *,
            module: Any,
            processor: Any,
            current_subset: Any = None,
            layer_inputs: Any,
            need_outputs: bool,
            reuse_kv: bool = False,
            progress_pb: Any = None,
        ) -> list[Any]:
            out = []
            for processor.index, inputs in enumerate(list(layer_inputs)):
                out.append(module(*inputs))
            return out

        patch.setattr(ForwardExecutor, "run_single", run_single)
        self.layer, self.processor = Layer(), Processor()
        self.executor = ForwardExecutor.__new__(ForwardExecutor)
        self.executor.looper = type("Looper", (), {"processors": [self.processor]})()
        self.inputs: list[Any] = [[torch.randn(1, 3, 4)] for _ in range(2)]

    def go(self, *subset: str, layer: Any = None, **more: Any) -> list[Any]:
        return self.executor.run_single(
            module=layer or self.layer,
            processor=self.processor,
            current_subset=dict.fromkeys(subset) or None,
            layer_inputs=self.inputs,
            need_outputs=not subset,
            **{"reuse_kv": False, **more},
        )

    @property
    def ran(self) -> int:
        return int(self.layer.linear_attn.ran)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(monkeypatch)


def test_the_replay_drops_the_inputs_of_every_batch_it_is_done_with(loop: Loop) -> None:
    import torch

    expected = loop.go()
    with mixer_once():
        loop.go("linear_attn.out_proj")
        loop.go("mlp.down_proj")
        assert all(len(inputs) == 1 for inputs in loop.inputs)
        out = loop.go()
    assert [torch.equal(a, b) for a, b in zip(out, expected, strict=True)] == [True, True]
    assert loop.inputs == [[], []]
    assert "forward" not in loop.layer.linear_attn.__dict__


def test_inputs_stay_where_a_second_processor_may_want_them(loop: Loop) -> None:
    loop.executor.looper.processors.append(object())
    with mixer_once():
        loop.go("linear_attn.out_proj")
        loop.go()
    assert [len(inputs) for inputs in loop.inputs] == [1, 1]


def test_a_changed_projection_counts_in_later_passes_without_the_mixer(loop: Loop) -> None:
    import torch

    with mixer_once():
        loop.go("linear_attn.out_proj")
        with torch.no_grad():
            loop.layer.linear_attn.out_proj.weight.mul_(2)
        before = loop.ran
        out = loop.go("mlp.down_proj")
        assert loop.ran == before
    expected = loop.go("mlp.down_proj")
    assert loop.ran == before + 2
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(
            lambda loop: loop.go("linear_attn.in_proj_qkv"), id="a projection before it quantized later"
        ),
        pytest.param(lambda loop: loop.go(layer=type(loop.layer)()), id="another layer"),
        pytest.param(lambda loop: loop.go("mlp.gate_proj", reuse_kv=True), id="a layer with another's keys"),
        pytest.param(
            lambda loop: loop.inputs.append(loop.inputs[0]) or loop.go("linear_attn.in_proj_qkv"),
            id="more batches",
        ),
    ],
)
def test_what_was_kept_is_not_used_after(loop: Loop, between: Callable[[Loop], Any]) -> None:
    with mixer_once():
        loop.go("linear_attn.out_proj")
        between(loop)
        before = loop.ran
        loop.go("mlp.down_proj")
        assert loop.ran == before + len(loop.inputs)


def test_a_layer_whose_projection_is_left_alone_is_kept_from_the_first_pass_behind_it(loop: Loop) -> None:
    with mixer_once() as counts:
        loop.go("linear_attn.in_proj_qkv")
        loop.go("mlp.gate_proj")
        before = loop.ran
        loop.go("mlp.down_proj")
        assert loop.ran == before
    assert counts == ForwardCounts(whole=4, short=2)


def test_a_loop_that_names_its_batches_no_more_is_refused(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(loop.processor), "current_batch_index", lambda self: None)
    with mixer_once(), pytest.raises(IncompatibleError, match="index of its batch"):
        loop.go("linear_attn.out_proj")


def test_a_pass_that_fails_leaves_the_mixer_as_it_was(loop: Loop) -> None:
    import torch

    with mixer_once():
        loop.go("linear_attn.out_proj")
        loop.layer.linear_attn.out_proj.weight = torch.nn.Parameter(torch.ones(4, 5))
        with pytest.raises(RuntimeError):
            loop.go("mlp.down_proj")
    assert "forward" not in loop.layer.linear_attn.__dict__
    assert not loop.layer.linear_attn.out_proj._forward_pre_hooks


class OnGpu:
    """Mixed into a tensor: says it is on a GPU."""

    is_cuda = True


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pinned memory that was allocated."""
    import torch

    from gptq_hybrid.upstream.speedups import _forward

    allocated: list[Any] = []

    def pinned(size: int) -> Any:
        allocated.append(torch.empty(size, dtype=torch.uint8))
        return allocated[-1]

    monkeypatch.setattr(_forward, "pinned", pinned)
    return allocated


def on_gpu(value: Any) -> Any:
    import torch

    class Fake(OnGpu, torch.Tensor):
        pass

    return value.as_subclass(Fake)


@pytest.mark.parametrize(("room", "moved"), [(2 * 24, False), (2 * 24 - 1, True)])
def test_what_all_batches_need_decides_between_the_gpu_and_main_memory(
    room: int, moved: bool, blocks: list[Any]
) -> None:
    import torch

    from gptq_hybrid.upstream.speedups import _forward

    value = torch.arange(12, dtype=torch.bfloat16).reshape(1, 3, 4)
    memo = _forward._Memo(object(), object(), room, batches=2)
    memo.put(0, on_gpu(value))
    assert not memo.complete
    assert len(blocks) == moved
    assert torch.equal(torch.Tensor(memo.inputs[0].float()), value.float())
    assert memo.inputs[0].data_ptr() == (blocks[0] if moved else value).data_ptr()


@pytest.mark.parametrize(("block", "sizes"), [(1 << 30, [72]), (48, [48, 24]), (1, [24, 24, 24])])
def test_pinned_memory_is_taken_in_blocks_of_many_batches(
    block: int, sizes: list[int], blocks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from gptq_hybrid.upstream.speedups import _forward

    monkeypatch.setattr(_forward, "_BLOCK_BYTES", block)
    memo = _forward._Memo(object(), object(), room=0, batches=3)
    values = [torch.full((1, 3, 4), float(number), dtype=torch.bfloat16) for number in range(3)]
    for number, value in enumerate(values):
        memo.put(number, on_gpu(value))
    assert memo.complete
    assert [block.nbytes for block in blocks] == sizes
    for number, value in enumerate(values):
        assert torch.equal(torch.Tensor(memo.inputs[number].float()), value.float())
