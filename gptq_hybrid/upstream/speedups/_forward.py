"""Running a layer's token mixer once a layer while gptqmodel quantizes it, with the same numbers.

What gptqmodel 7.6.0 does: a layer is quantized in groups of modules ("subsets"), each from a pass of all
calibration batches through the layer as it stands then, so that `o_proj` sees what quantized q, k and v make. One
pass for all would measure inputs of the unquantized layer: other numbers, to be had as ``true_sequential = false``
and not what this is. With this project's module tree there are four subsets (upstream's own has five in a
Gated-DeltaNet layer):

    1  q, k, v or in_proj_qkv, in_proj_z      stops there
    2  o_proj or out_proj                     runs the mixer
    3  gate_proj, up_proj                     runs the mixer
    4  down_proj                              runs the mixer, and the MLP
    5  replay, for the next layer's inputs    runs both; the last layer has none

A pass does stop at the last module of its subset (``HookedLinear.forward_hook_last``): nothing is to be won there.
But the mixer (attention or Gated DeltaNet) runs four times, although from pass 2 on nothing in it changes but its
output projection. Pass 2 therefore keeps that projection's input of every batch; passes 3 to 5 begin with the
projection. The kernels that run get the same operands as before, so the result has the same bytes.

What it keeps is one vector of the projection's width (6,144 at the 27B) a token: 12.9 GB in BF16 for 512 × 2,048
tokens. Where that is more than a share of the GPU's memory it goes to pinned main memory and comes back batch by
batch. The replay pass drops a batch's inputs as soon as its outputs exist, where gptqmodel holds both for all.

gptqmodel also redraws its progress bars for every batch. Rows are not counted on the screen any more; layers and
modules are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

from gptq_hybrid.upstream.gptqmodel import moved

from ._pinned import pinned, release

if TYPE_CHECKING:
    import torch

# A layer's mixer and the projection it ends with.
_MIXERS = {"linear_attn": "out_proj", "self_attn": "o_proj"}
_ARGUMENTS = frozenset(
    ("module", "processor", "current_subset", "layer_inputs", "need_outputs", "progress_pb", "reuse_kv")
)
# At the 27B's sizes 128 x 2,048 tokens stay on an 80 GB card, 512 x 2,048 do not.
_SHARE_OF_GPU = 1 / 16
# PyTorch rounds pinned memory up to a power of two: a batch of the 27B of 24 MiB would take 32.
_PINNED = 1 << 30


def room_on_gpu(total: int) -> int:
    """Bytes of a GPU of ``total`` that what is kept of a layer may take; more than that goes to main memory."""
    return int(total * _SHARE_OF_GPU)


@dataclass(slots=True)
class ForwardCounts:
    """Batches that went through a layer: ``whole`` ran the mixer's code (or stopped in it), ``short`` did not."""

    whole: int = 0
    short: int = 0


@dataclass(slots=True)
class _Memo:
    """Inputs of a mixer's last projection by batch, for one layer under one processor."""

    layer: Any
    processor: Any
    room: int | None
    batches: int
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    block: torch.Tensor | None = None

    def put(self, batch: int, value: torch.Tensor) -> None:
        """Keep ``value``, ``[rows, tokens, features]``, where there is room for that many like it."""
        value = value.detach()
        if value.is_cuda and value.nbytes * self.batches > self._room(value.device):
            # Both copies are queued on one stream, so the way back waits for the way there.
            self.inputs[batch] = self._host(value).copy_(value, non_blocking=True)
        else:
            self.inputs[batch] = value

    def _host(self, value: torch.Tensor) -> torch.Tensor:
        """Pinned memory like ``value``, the next piece of a block that holds many."""
        if self.block is None or self.block.nbytes < value.nbytes:
            size = max(value.nbytes, min(_PINNED, value.nbytes * (self.batches - len(self.inputs))))
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


def _mixer_of(layer: Any) -> tuple[str, Any, Any] | None:
    """Name and module of a layer's mixer, and the projection it ends with; None where there is not just one."""
    found = [name for name in _MIXERS if hasattr(layer, name)]
    if len(found) != 1:
        return None
    mixer = getattr(layer, found[0])
    projection = getattr(mixer, _MIXERS[found[0]], None)
    return None if projection is None else (found[0], mixer, projection)


@contextmanager
def mixer_once(*, room: int | None = None) -> Iterator[ForwardCounts]:
    """Have gptqmodel run each layer's mixer once, after its inputs' projections are quantized.

    For GPTQ and GPTAQ on one device; passes spread over several GPUs go as before. Args:
        room: bytes of a GPU that may hold what is kept; what needs more goes to main memory. By default a
            sixteenth of the GPU. Without a GPU it is all in main memory.

    Yields:
        How many batches went which way so far.

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
        found = _mixer_of(layer)
        if memo is not None and not (memo.layer is layer and memo.processor is processor):
            memo = None
        if found is None or call["reuse_kv"]:
            memo = None
            return original(self, **call)
        name, mixer, projection = found
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
        # What the mixer computes up to its projection is final only where all its other modules are quantized.
        if inside - {f"{name}.{_MIXERS[name]}"} or not subset:
            memo = None
            return original(self, **call)
        memo = _Memo(layer, processor, room, batches)
        with _keeping(projection, memo):
            return original(self, **call)

    ForwardExecutor.run_single = run_single
    try:
        yield counts
    finally:
        ForwardExecutor.run_single = original
        # The last layer has no replay that would drop what was kept of it.
        memo = None
        release()


@contextmanager
def _keeping(projection: Any, memo: _Memo) -> Iterator[None]:
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
    """``mixer`` computes its projection alone; the inputs of a batch in ``drop`` go when its outputs exist."""

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        kept = memo.inputs[memo.processor.current_batch_index()]
        out = projection(kept.to(hidden_states.device, non_blocking=True))
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


# What the mixers' code must end with, and how a layer must use what they return.
_CODE: Mapping[str, tuple[str, ...]] = {
    "Qwen3_5GatedDeltaNet": ("output = self.out_proj(core_attn_out) return output",),
    "Qwen3_5Attention": ("attn_output = self.o_proj(attn_output) return attn_output, attn_weights",),
    "Qwen3_5DecoderLayer": (
        "hidden_states = self.linear_attn( hidden_states=hidden_states,",
        "hidden_states, _ = self.self_attn( hidden_states=hidden_states,",
    ),
}


def _check_layers() -> None:
    """Raise unless transformers' layer calls its mixers, and these their projections, as the replacement does.

    Raises:
        IncompatibleError: it does not.
    """
    from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling

    for name, wanted in _CODE.items():
        known = getattr(modeling, name, None)
        code = "" if known is None else " ".join(inspect.getsource(known.forward).split())
        mixer = name != "Qwen3_5DecoderLayer"
        if not all(code.endswith(part) if mixer else part in code for part in wanted):
            raise moved(f"transformers' {name}.forward is expected to hold {' and '.join(map(repr, wanted))}")
