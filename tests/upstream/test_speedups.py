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

from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.upstream import IncompatibleError, record_modules
from gptq_hybrid.upstream.speedups import (
    ForwardCounts,
    block_kernel,
    faster,
    mixer_once,
    swift_search,
    swift_solver,
)

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


def tensor_digests(folder: Path) -> dict[str, str]:
    import torch
    from safetensors import safe_open

    digests = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name).contiguous().view(torch.uint8)
                digests[name] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    return digests


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
            # Of what differs on a GPU in the last digits.
            model.products = "ieee"
            with mixers_counted() as ran, ExitStack() as stack:
                entered = [stack.enter_context(speedup()) for speedup in speedups]
                model.quantize([dict(row) for row in calibration[:ROWS]], batch_size=batch)
            model.save(str(target))
            made[key] = Run(tensor_digests(target), ran[0], entered)
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
        ("reference", 3, by_itself),
        ("static-mse", 3, by_itself),
        # The unquantized model's passes come before the quantized one's in every layer.
        ("static, GPTAQ", 1, by_itself),
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
    reasons: list[str] = []
    monkeypatch.setattr(_hybrid, "faster", refused)
    monkeypatch.setattr(_hybrid, "keep_log", lambda model, out: None)
    upstream = hybrid.__mro__[2]
    monkeypatch.setattr(
        upstream, "quantize", lambda self, calibration, batch_size=1: went.append(calibration)
    )
    from gptqmodel import QuantizeConfig

    model.__dict__.update(
        quantize_config=QuantizeConfig(bits=4, group_size=128),
        model_local_path=str(original.path),
        on_slower=reasons.append,
    )
    model.quantize([{"input_ids": [1]}])
    assert went == [[{"input_ids": [1]}]]
    assert reasons == ["moved"]
    assert "quantizing takes longer than it could: moved" in caplog.text
