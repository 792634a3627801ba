"""Run a layer's token mixer once a layer while gptqmodel quantizes it, with the same numbers.

A layer is quantized in groups of modules ("subsets"), each from a pass of all calibration batches through the
layer as it stands then, so that ``o_proj`` sees what quantized q, k and v make. One pass for all would measure
inputs of the unquantized layer. That gives other numbers; it can be had as ``true_sequential = false``, and is
not what this is. With this project's module tree there are four subsets (upstream's own has five in a
Gated-DeltaNet layer):

    1  q, k, v or in_proj_qkv, in_proj_z      stops there
    2  o_proj or out_proj                     runs the mixer
    3  gate_proj, up_proj                     runs the mixer
    4  down_proj                              runs the mixer, and the MLP
    5  replay, for the next layer's inputs    runs both; the last layer has none

A pass does stop at the last module of its subset (``HookedLinear.forward_hook_last``), so nothing can be saved
there. But the mixer (attention or Gated DeltaNet) runs four times, although from pass 2 on nothing in it
changes but its output projection. Pass 2 therefore keeps that projection's input for every batch; passes 3 to 5
begin with the projection. The kernels that run get the same operands as before, so the result has the same
bytes.

What is kept is one vector of the projection's width (6,144 at the 27B) a token: 12.9 GB in BF16 for 512 × 2,048
tokens. Where that is more than a share of the GPU's memory it goes to pinned main memory and comes back batch
by batch. The replay pass drops a batch's inputs as soon as its outputs exist, where gptqmodel holds both for
all batches.

Changes: ``ForwardExecutor.run_single``, which also stops redrawing gptqmodel's progress bars for every batch.
Why: the mixer is most of a pass, and three of its four runs a layer compute what is known already.
Versions: 7.6.0; 7.7.0, where the file is the same and it was run on a CPU only.
Checks: arguments of ``run_single``, ``LoopProcessor.current_batch_index``, the source of transformers' three
    classes.
May go: when gptqmodel caches activations between the subsets of a layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

from gptq_hybrid.upstream.versions import moved

from ._pinned import pinned
from ._pinned import release as release_pinned

if TYPE_CHECKING:
    import torch

# A layer's mixer, and its output projection.
_MIXERS = {"linear_attn": "out_proj", "self_attn": "o_proj"}
_ARGUMENTS = frozenset(
    ("module", "processor", "current_subset", "layer_inputs", "need_outputs", "progress_pb", "reuse_kv")
)
# At the 27B's sizes 128 x 2,048 tokens stay on an 80 GB card, 512 x 2,048 do not.
_SHARE_OF_GPU = 1 / 16
# PyTorch rounds pinned memory up to a power of two: a batch of the 27B of 24 MiB would take 32.
_BLOCK_BYTES = 1 << 30


def room_on_gpu(total: int) -> int:
    """Return how many of a GPU's ``total`` bytes may keep inputs of a layer; more than that goes to main memory."""
    return int(total * _SHARE_OF_GPU)


@dataclass(slots=True)
class ForwardCounts:
    """Batches that went through a layer: ``whole`` with the mixer's code or part of it, ``short`` without."""

    whole: int = 0
    short: int = 0


@dataclass(slots=True)
class _Memo:
    """Inputs of a mixer's output projection by batch, for one layer under one processor."""

    layer: Any
    processor: Any
    room: int | None
    batches: int
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    block: torch.Tensor | None = None

    def put(self, batch: int, value: torch.Tensor) -> None:
        """Keep ``value``, ``[rows, tokens, features]``: on the GPU if all batches fit, else in main memory."""
        value = value.detach()
        if value.is_cuda and value.nbytes * self.batches > self._room(value.device):
            # Both copies are queued on one stream, so the copy back waits for this one.
            self.inputs[batch] = self._pinned_like(value).copy_(value, non_blocking=True)
        else:
            self.inputs[batch] = value

    def _pinned_like(self, value: torch.Tensor) -> torch.Tensor:
        """Return pinned memory for ``value``: the next piece of a block that holds many."""
        if self.block is None or self.block.nbytes < value.nbytes:
            size = max(value.nbytes, min(_BLOCK_BYTES, value.nbytes * (self.batches - len(self.inputs))))
            self.block = pinned(size)
        piece, self.block = self.block[: value.nbytes], self.block[value.nbytes :]
        return piece.view(value.dtype).view(value.shape)

    def _room(self, device: torch.device) -> int:
        import torch

        if self.room is not None:
            return self.room
        return room_on_gpu(torch.cuda.get_device_properties(device).total_memory)

    @property
    def complete(self) -> bool:
        return len(self.inputs) == self.batches


def _find_mixer(layer: Any) -> tuple[str, Any, Any] | None:
    """Return name and module of a layer's mixer, and its output projection; None unless there is exactly one."""
    names = [name for name in _MIXERS if hasattr(layer, name)]
    if len(names) != 1:
        return None
    mixer = getattr(layer, names[0])
    projection = getattr(mixer, _MIXERS[names[0]], None)
    return None if projection is None else (names[0], mixer, projection)


@contextmanager
def mixer_once(*, room: int | None = None) -> Iterator[ForwardCounts]:
    """Have gptqmodel run each layer's mixer once, after its inputs' projections are quantized.

    For GPTQ and GPTAQ on one device; passes spread over several GPUs are left alone.

    Args:
        room: bytes of a GPU that may hold what is kept; where that needs more, it goes to main memory. By default a
            sixteenth of the GPU. Without a GPU it is all in main memory.

    Yields:
        Counts of the batches so far, with and without the mixer's code.

    Raises:
        IncompatibleError: gptqmodel's loop, or the layer's code, is not the one this was written for.
    """
    try:
        from gptqmodel.looper.forward_executor import ForwardExecutor
        from gptqmodel.looper.loop_processor import LoopProcessor
    except ImportError as error:
        raise moved(f"gptqmodel.looper.forward_executor is expected: {error}") from error

    original: Callable[..., Any] | None = getattr(ForwardExecutor, "run_single", None)
    if original is None or _ARGUMENTS - inspect.signature(original).parameters.keys():
        raise moved(f"ForwardExecutor.run_single is expected to take {', '.join(sorted(_ARGUMENTS))}")
    if not hasattr(LoopProcessor, "current_batch_index"):
        raise moved("LoopProcessor.current_batch_index is expected")
    _check_layers()
    counts = ForwardCounts()
    memo: _Memo | None = None

    @wraps(original)
    def run_single(self: Any, **call: Any) -> Any:
        nonlocal memo
        layer, processor, subset = call["module"], call["processor"], call.get("current_subset")
        call["progress_pb"] = None
        batches = len(call["layer_inputs"])
        parts = _find_mixer(layer)
        if memo is not None and not (memo.layer is layer and memo.processor is processor):
            memo = None
        if parts is None or call["reuse_kv"]:
            memo = None
            return original(self, **call)
        name, mixer, projection = parts
        inside = {module for module in subset or () if module.startswith(f"{name}.")}
        if memo is not None and memo.complete and not inside:
            last = subset is None and call["need_outputs"]
            counts.short += batches
            drop = call["layer_inputs"] if last and len(self.looper.processors) == 1 else None
            try:
                with _from_projection(layer, name, mixer, projection, memo, drop):
                    return original(self, **call)
            finally:
                if last:
                    memo = None
        counts.whole += batches
        # The projection's input is final only once all other modules of the mixer are quantized.
        if inside - {f"{name}.{_MIXERS[name]}"} or not subset:
            memo = None
            return original(self, **call)
        memo = _Memo(layer, processor, room, batches)
        with _kept_inputs(projection, memo):
            return original(self, **call)

    ForwardExecutor.run_single = run_single
    try:
        yield counts
    finally:
        ForwardExecutor.run_single = original
        # The last layer has no replay that would drop its inputs.
        memo = None
        release_pinned()


@contextmanager
def _kept_inputs(projection: Any, memo: _Memo) -> Iterator[None]:
    def keep(module: Any, inputs: tuple[Any, ...]) -> None:
        batch = memo.processor.current_batch_index()
        if batch is None:
            raise moved("a layer's pass is expected to set the index of its batch")
        memo.put(batch, inputs[0])

    handle = projection.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _from_projection(
    layer: Any, name: str, mixer: Any, projection: Any, memo: _Memo, drop: list[Any] | None
) -> Iterator[None]:
    """Have ``mixer`` compute its projection alone; a batch's entry in ``drop`` goes when its outputs exist."""

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        value = memo.inputs[memo.processor.current_batch_index()]
        out = projection(value.to(hidden_states.device, non_blocking=True))
        return (out, None) if name == "self_attn" else out

    def release(module: Any, inputs: Any, output: Any) -> None:
        batch = memo.processor.current_batch_index()
        memo.inputs.pop(batch)
        assert drop is not None
        drop[batch] = []

    before = mixer.__dict__.get("forward")
    handle = layer.register_forward_hook(release) if drop is not None else None
    mixer.forward = forward
    try:
        yield
    finally:
        if before is None:
            del mixer.forward
        else:
            mixer.forward = before
        if handle is not None:
            handle.remove()


# How the mixers' code must end, and how a layer must use what they return.
_CODE: Mapping[str, tuple[str, ...]] = {
    "Qwen3_5GatedDeltaNet": ("output = self.out_proj(core_attn_out) return output",),
    "Qwen3_5Attention": ("attn_output = self.o_proj(attn_output) return attn_output, attn_weights",),
    "Qwen3_5DecoderLayer": (
        "hidden_states = self.linear_attn( hidden_states=hidden_states,",
        "hidden_states, _ = self.self_attn( hidden_states=hidden_states,",
    ),
}


def _check_layers() -> None:
    """Check that transformers' layer calls its mixers, and these their projections, as the replacement does.

    Raises:
        IncompatibleError: it does not.
    """
    from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling

    for name, parts in _CODE.items():
        class_ = getattr(modeling, name, None)
        code = "" if class_ is None else " ".join(inspect.getsource(class_.forward).split())
        mixer = name != "Qwen3_5DecoderLayer"
        if not all(code.endswith(part) if mixer else part in code for part in parts):
            raise moved(f"transformers' {name}.forward is expected to hold {' and '.join(map(repr, parts))}")
