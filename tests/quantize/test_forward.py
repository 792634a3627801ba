"""Fewer forwards and a solver with less to do: the same bytes, by fewer runs of the mixers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.compat import (
    ForwardCounts,
    IncompatibleError,
    block_kernel,
    faster,
    mixer_once,
    record_modules,
    swift_search,
    swift_solver,
)
from gptq_hybrid.demo.builder import DemoCheckpoint

ROWS = 6
LAYERS = 4


@dataclass
class Run:
    """Digests of a finished quantization's tensors by name, and how often a mixer's own code ran to its end."""

    tensors: dict[str, str]
    mixers: int
    entered: Any


@contextmanager
def mixers_counted() -> Iterator[list[int]]:
    from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling

    ran = [0]
    with pytest.MonkeyPatch.context() as patch:
        for mixer in (modeling.Qwen3_5GatedDeltaNet, modeling.Qwen3_5Attention):

            def forward(self: Any, *args: Any, inner: Any = mixer.forward, **kwargs: Any) -> Any:
                out = inner(self, *args, **kwargs)
                ran[0] += 1
                return out

            patch.setattr(mixer, "forward", wraps(mixer.forward)(forward))
        yield ran


def by_itself() -> AbstractContextManager[None]:
    """Nothing around the definition's ``quantize``, which then takes every speed-up."""
    return nullcontext()


def digests(folder: Path) -> dict[str, str]:
    import torch
    from safetensors import safe_open

    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name).contiguous().view(torch.uint8)
                found[name] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def quantize(
    original: DemoCheckpoint,
    calibration: list[dict[str, list[int]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Run]:
    """Quantize the demo checkpoint once per recipe, batch size and speed-ups, with a few rows of unequal length."""
    made: dict[tuple[Any, ...], Run] = {}

    def run(recipe: str, batch: int, *speedups: Callable[[], AbstractContextManager[Any]]) -> Run:
        key = (recipe, batch, *speedups)
        if key not in made:
            import gptq_hybrid
            from gptq_hybrid.recipes import load_recipe

            gptq_hybrid.register()
            from gptqmodel import GPTQModel

            target = tmp_path_factory.mktemp("forward") / "out"
            name, _, gptaq = recipe.partition(", ")
            chosen = load_recipe(name)
            if gptaq:
                chosen = replace(chosen, settings={**chosen.settings, "gptaq": {"alpha": 0.25}})
            model = GPTQModel.load(str(original.path), chosen.quantize_config())
            # By itself it enters all of them.
            model.faster = speedups == (by_itself,)
            with mixers_counted() as ran, ExitStack() as stack:
                entered = [stack.enter_context(speedup()) for speedup in speedups]
                model.quantize([dict(row) for row in calibration[:ROWS]], batch_size=batch)
            model.save(str(target))
            made[key] = Run(digests(target), ran[0], entered)
        return made[key]

    return run


def test_rows_are_of_unequal_length(calibration: list[dict[str, list[int]]]) -> None:
    assert len({len(row["input_ids"]) for row in calibration[:ROWS]}) > 1


@pytest.mark.parametrize(
    ("recipe", "batch", "speedup"),
    [
        ("static", 3, mixer_once),
        ("static-mse", 3, swift_solver),
        ("static-mse", 3, swift_search),
        ("static", 3, by_itself),
        ("static-mse", 3, by_itself),
        # The unquantized model's passes come before the quantized one's in every layer.
        ("static, GPTAQ", 1, mixer_once),
    ],
)
def test_a_speedup_leaves_every_byte_as_it_was(
    quantize: Callable[..., Run], recipe: str, batch: int, speedup: Any
) -> None:
    before, after = quantize(recipe, batch), quantize(recipe, batch, speedup)
    assert len(before.tensors) > 100
    assert after.tensors == before.tensors


def test_a_mixer_runs_to_its_end_once_a_layer_and_batch_instead_of_three_times(
    quantize: Callable[..., Run],
) -> None:
    batches = ROWS // 3
    # Passes for gate and up, for down, and the replay; that for the output projection stops at it, in either case.
    capture = quantize("static", 3, mixer_once).mixers
    whole = quantize("static", 3).mixers
    # The last layer has no replay.
    assert whole - capture == batches * (3 * LAYERS - 1)
    assert capture == 0
    assert quantize("static", 3, by_itself).mixers == capture
    counts = quantize("static", 3, mixer_once).entered[0]
    assert counts == ForwardCounts(whole=2 * LAYERS * batches, short=batches * (3 * LAYERS - 1))


def test_all_is_gptqmodels_own_again_afterwards() -> None:
    from gptqmodel.looper.forward_executor import ForwardExecutor
    from gptqmodel.quantization.gptq import GPTQ

    before = ForwardExecutor.run_single, GPTQ.quantize
    with mixer_once(), swift_solver():
        assert ForwardExecutor.run_single is not before[0]
        assert GPTQ.quantize is not before[1]
    assert (ForwardExecutor.run_single, GPTQ.quantize) == before


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
        found = loop.go()
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True, True]
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
        found = loop.go("mlp.down_proj")
        assert loop.ran == before
    expected = loop.go("mlp.down_proj")
    assert loop.ran == before + 2
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


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


@pytest.mark.parametrize(("room", "moved"), [(2 * 24, False), (2 * 24 - 1, True)])
def test_what_all_batches_need_decides_between_the_gpu_and_main_memory(
    room: int, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from gptq_hybrid.compat import _forward

    class Fake(OnGpu, torch.Tensor):
        pass

    pinned: list[Any] = []
    empty = torch.empty

    def pin(size: int, *, dtype: Any, pin_memory: bool) -> Any:
        assert pin_memory
        pinned.append(empty(size, dtype=dtype))
        return pinned[-1]

    monkeypatch.setattr(torch, "empty", pin)
    value = torch.arange(12, dtype=torch.bfloat16).reshape(1, 3, 4)
    memo = _forward._Memo(object(), object(), room, batches=2)
    memo.put(0, value.as_subclass(Fake))
    assert not memo.complete
    assert len(pinned) == moved
    assert torch.equal(torch.Tensor(memo.inputs[0].float()), value.float())
    assert memo.inputs[0].data_ptr() == (pinned[0] if moved else value).data_ptr()


def test_a_loop_of_another_signature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.looper.forward_executor import ForwardExecutor

    monkeypatch.setattr(ForwardExecutor, "run_single", lambda self, *, module, batches: None)
    with pytest.raises(IncompatibleError, match="run_single is expected to take"), mixer_once():
        pass


@pytest.mark.parametrize("name", ["Qwen3_5GatedDeltaNet", "Qwen3_5Attention", "Qwen3_5DecoderLayer"])
def test_a_layer_with_other_code_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling

    def forward(self: Any, hidden_states: Any) -> Any:
        return hidden_states

    monkeypatch.setattr(getattr(modeling, name), "forward", forward)
    with pytest.raises(IncompatibleError, match=name), mixer_once():
        pass


def test_one_refusal_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.looper.forward_executor import ForwardExecutor
    from gptqmodel.quantization import gptq_cuda
    from gptqmodel.quantization.gptq import GPTQ

    monkeypatch.delattr(GPTQ, "compute_hessian_xtx")
    before = ForwardExecutor.run_single, GPTQ.quantize, gptq_cuda.gptq_block_update
    with pytest.raises(IncompatibleError, match="compute_hessian_xtx"), faster(products="half"):
        pass
    assert (ForwardExecutor.run_single, GPTQ.quantize, gptq_cuda.gptq_block_update) == before


@pytest.mark.parametrize(
    ("module", "speedup"),
    [
        ("gptqmodel.looper.forward_executor", mixer_once),
        ("gptqmodel.quantization.gptq_cuda", block_kernel),
    ],
)
def test_a_gptqmodel_without_the_module_is_refused(
    module: str, speedup: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gptqmodel.quantization

    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr(gptqmodel.quantization, "gptq_cuda", raising=False)
    with pytest.raises(IncompatibleError, match=module), speedup():
        pass


def test_the_solver_is_refused_where_something_wraps_it_already() -> None:
    with (
        record_modules(),
        pytest.raises(IncompatibleError, match="in nothing else"),
        swift_solver(),
    ):
        pass


def test_within_another_nothing_is_changed_twice() -> None:
    from gptqmodel.looper.forward_executor import ForwardExecutor
    from gptqmodel.quantization.gptq import GPTQ

    before, interval = (ForwardExecutor.run_single, GPTQ.quantize), sys.getswitchinterval()
    with faster() as counts:
        changed = ForwardExecutor.run_single, GPTQ.quantize
        with faster(products="half") as inner:
            assert (ForwardExecutor.run_single, GPTQ.quantize) == changed
            assert inner is counts
        assert (ForwardExecutor.run_single, GPTQ.quantize) == changed
        assert sys.getswitchinterval() < interval
    assert (ForwardExecutor.run_single, GPTQ.quantize) == before
    assert sys.getswitchinterval() == interval


def test_a_gptqmodel_it_was_not_written_for_quantizes_all_the_same(
    original: DemoCheckpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import gptq_hybrid
    from gptq_hybrid.definition import _hybrid

    gptq_hybrid.register()
    from gptqmodel.models.auto import MODEL_MAP

    @contextmanager
    def refused(**_: Any) -> Iterator[None]:
        raise IncompatibleError("moved")
        yield

    hybrid = MODEL_MAP["qwen3_5"]
    model = hybrid.__new__(hybrid)
    went: list[Any] = []
    monkeypatch.setattr(_hybrid, "faster", refused)
    monkeypatch.setattr(_hybrid, "keep_log", lambda model, out: None)
    upstream = hybrid.__mro__[2]
    monkeypatch.setattr(
        upstream, "quantize", lambda self, calibration, batch_size=1: went.append(calibration)
    )
    from gptqmodel import QuantizeConfig

    model.__dict__.update(
        quantize_config=QuantizeConfig(bits=4, group_size=128), model_local_path=str(original.path)
    )
    model.quantize([{"input_ids": [1]}])
    assert went == [[{"input_ids": [1]}]]
    assert "quantizing takes longer than it could: moved" in caplog.text


@pytest.mark.parametrize(("block", "blocks"), [(1 << 30, [72]), (48, [48, 24]), (1, [24, 24, 24])])
def test_pinned_memory_is_taken_in_blocks_of_many_batches(
    block: int, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from gptq_hybrid.compat import _forward

    class Fake(OnGpu, torch.Tensor):
        pass

    sizes: list[int] = []
    empty = torch.empty

    def pin(size: int, *, dtype: Any, pin_memory: bool) -> Any:
        sizes.append(size)
        return empty(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", pin)
    monkeypatch.setattr(_forward, "_PINNED", block)
    memo = _forward._Memo(object(), object(), room=0, batches=3)
    values = [torch.full((1, 3, 4), float(number), dtype=torch.bfloat16) for number in range(3)]
    for number, value in enumerate(values):
        memo.put(number, value.as_subclass(Fake))
    assert memo.complete
    assert sizes == blocks
    for number, value in enumerate(values):
        assert torch.equal(torch.Tensor(memo.inputs[number].float()), value.float())
