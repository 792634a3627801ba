"""Run one checkpoint over all documents: final hidden states, and which of its own drafts it agrees with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gptq_hybrid.streaming import Batch, LayerStream, MtpHead, OutputHead, TextStack, Weights

from .states import StateStore, list_tensors, name_tensors

# Elements of one chunk of float32 logits. On a GPU, half a GiB; seven arrays of that size exist at once. On a CPU,
# 2 million (256 tokens of the small model) took a third of the time of 67 million: they stay in its cache.
_LOGITS = {"cuda": 1 << 27, "cpu": 1 << 21}
# With the 27B's vocabulary 2 million are 8 tokens, and each chunk reads the whole output head.
_LEAST_TOKENS = 256

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PassSettings:
    """How a checkpoint is run. ``drafts`` is the number of MTP drafts; 0 leaves the MTP head out."""

    device: torch.device
    dtype: torch.dtype
    drafts: int


@dataclass(frozen=True, slots=True)
class Pass:
    """The result of running one checkpoint.

    Attributes:
        hidden: ``[documents, length, hidden]`` for each batch, after the final norm, in main memory.
        agreed: by the document's number, bool ``[positions, drafts]``; empty without an MTP head.
    """

    hidden: list[torch.Tensor]
    agreed: dict[int, torch.Tensor]


def run_pass(
    weights: Weights,
    batches: Sequence[Batch],
    settings: PassSettings,
    *,
    store: StateStore | None = None,
    has_mtp: bool,
    on_layer: OnStep | None = None,
) -> Pass:
    """Run all layers, then the MTP head; continue from what ``store`` holds, and save the result there."""
    stack = TextStack(weights, settings.device, settings.dtype)
    saved = store.load() if store is not None else None
    if saved is not None and any(name.startswith("final.") for name in saved.tensors):
        if on_layer is not None:
            on_layer(stack.depth, stack.depth)
        return _restore(saved.tensors)
    stream = LayerStream(
        stack,
        batches,
        states=None if saved is None else list_tensors("hidden", saved.tensors),
        done=0 if saved is None else saved.layers,
    )

    def after_layer(stream: LayerStream) -> None:
        if store is not None:
            store.save_if_due(name_tensors("hidden", stream.states), stream.done)
        if on_layer is not None:
            on_layer(stream.done, stack.depth)

    if on_layer is not None:
        on_layer(stream.done, stack.depth)
    stream.run(after_layer=after_layer)
    hidden = stream.final()
    del stream
    agreed: dict[int, torch.Tensor] = {}
    if settings.drafts and has_mtp:
        agreed = compare_drafts(MtpHead(stack), OutputHead(stack), batches, hidden, settings.drafts)
    if store is not None:
        marks = {f"agreed.{number}": agreement.to(torch.uint8) for number, agreement in agreed.items()}
        store.save({**name_tensors("final", hidden), **marks}, stack.depth)
    return Pass(hidden, agreed)


def _restore(tensors: dict[str, torch.Tensor]) -> Pass:
    agreed = {
        int(name.removeprefix("agreed.")): tensor.bool()
        for name, tensor in tensors.items()
        if name.startswith("agreed.")
    }
    return Pass(list_tensors("final", tensors), agreed)


def choose_chunk(device: torch.device, vocabulary: int) -> int:
    """Return how many tokens' float32 logits to hold at once."""
    return max(_LEAST_TOKENS, _LOGITS.get(device.type, _LOGITS["cpu"]) // vocabulary)


def compare_drafts(
    mtp_head: MtpHead,
    output: OutputHead,
    batches: Sequence[Batch],
    hidden: Sequence[torch.Tensor],
    drafts: int,
) -> dict[int, torch.Tensor]:
    """Compare draft ``k`` from each position with the target's own argmax there, given the true text.

    Returns:
        By the document's number, bool ``[length - drafts, drafts]``. Documents no longer than ``drafts`` are left
        out.
    """
    agreed: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for batch, states in zip(batches, hidden, strict=True):
            if batch.tokens.shape[1] <= drafts:
                continue
            target = _argmax(output, states)
            # One document at a time: the mask of the later steps grows with the square of the length.
            for row, (number, length) in enumerate(zip(batch.numbers, batch.lengths, strict=True)):
                if length <= drafts:
                    continue
                steps = mtp_head.run(
                    states[row : row + 1, :length], batch.tokens[row : row + 1, :length], drafts
                )
                count = length - drafts
                columns = [
                    _argmax(output, step)[0] == target[row, k + 1 : k + 1 + count]
                    for k, step in enumerate(steps)
                ]
                agreed[number] = torch.stack(columns, dim=1)
    return agreed


def _argmax(output: OutputHead, states: torch.Tensor) -> torch.Tensor:
    """Map ``[…, hidden]`` to the most likely token ``[…]``, on the CPU."""
    flat = states.reshape(-1, states.shape[-1])
    size = choose_chunk(output.weight.device, output.vocabulary)
    best = [output.logits(flat[i : i + size]).argmax(-1).cpu() for i in range(0, len(flat), size)]
    return torch.cat(best).reshape(states.shape[:-1])
