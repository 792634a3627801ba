"""Divide a GPU's memory: weights, what running takes besides, and the cache that is left."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.units import size_text

from .cache import CacheLayout, cache_layout
from .running import GIB, RESERVE, VISION
from .weights import WeightBytes, weight_bytes

# What CUDA gives a process of a card's memory: 23.6 GiB of an RTX 4090's 24, 31.4 of an RTX 5090's 32 (from public
# messages of PyTorch that memory ran out).
CUDA_SHARE = 0.98
# --gpu-memory-utilization.
UTILIZATION = 0.95
# Sequences at once, and the tokens of context that each must have on average for that many to be allowed.
_SEQUENCES = ((64, 65536), (32, 65536), (16, 65536), (8, 16384), (4, 16384), (2, 16384), (1, 1))
# The vision tower is loaded where it leaves this much context.
_TOKENS_WITH_IMAGES = 131072
# Contexts are rounded down to it.
_ROUND = 4096


@dataclass(frozen=True, slots=True)
class Fit:
    """How a checkpoint fits a card. All derived; bytes unless it says otherwise.

    Attributes:
        usable: memory that vLLM may take.
        utilization: the share of the card that this is, as in ``--gpu-memory-utilization``.
        weights: what stays loaded, by part.
        images: whether the vision tower is among what is loaded.
        drafts: MTP drafts a step.
        kv_dtype: as in ``--kv-cache-dtype``.
        cache: left for keys, values and states.
        layout: how that is divided.
        sequences: at once.
        tokens: of context, for all of these together; 0 if it does not fit.
        context: the longest a single one can be, at most what the model takes.
        state_dtype: as in ``--mamba-ssm-cache-dtype``.
        tensor_parallel: GPUs; all bytes are of one of them.
        batched_tokens: as in ``--max-num-batched-tokens``; None for vLLM's default.
    """

    usable: int
    utilization: float
    weights: WeightBytes
    images: bool
    drafts: int
    kv_dtype: str
    cache: int
    layout: CacheLayout
    sequences: int
    tokens: int
    context: int
    state_dtype: str = "auto"
    tensor_parallel: int = 1
    batched_tokens: int | None = None

    @property
    def fits(self) -> bool:
        """Whether a useful context is left."""
        return self.context > 0

    @property
    def loaded(self) -> int:
        """Bytes of the weights that stay on the device."""
        weights = self.weights.rank(self.tensor_parallel) if self.tensor_parallel > 1 else self.weights
        return weights.served(drafts=bool(self.drafts), images=self.images)

    def text(self) -> str:
        """Say in one sentence what the memory goes to."""
        start = (
            f"derived, not measured: {size_text(self.usable)} usable - {size_text(self.loaded)} weights"
            f"{' without the vision tower' if self.weights.vision and not self.images else ''}"
            f" - {size_text(RESERVE + self.images * VISION.expected)} to run"
        )
        if not self.fits:
            return f"{start} leaves no room for a context"
        states = f"{size_text(self.sequences * self.layout.sequence_bytes)} of states"
        return (
            f"{start} leaves {size_text(self.cache)} of cache: {states} ({self.sequences} "
            f"sequence{'' if self.sequences == 1 else 's'}, {self.drafts} drafts) and {self.tokens:,} tokens"
        )


def fit(
    checkpoint: Checkpoint,
    memory: int,
    *,
    drafts: int = 0,
    kv_dtype: str = "auto",
    sequences: int | None = None,
    context: int | None = None,
    each: bool = False,
    images: bool | None = None,
    utilization: float = UTILIZATION,
    reserve: int = RESERVE,
    state_dtype: str = "auto",
    tensor_parallel: int = 1,
    checkpoints: bool = False,
    batched_tokens: int | None = None,
) -> Fit:
    """Divide the memory of one GPU.

    Args:
        memory: of the card, in bytes, as it is sold.
        drafts: MTP drafts a step.
        kv_dtype: as in ``--kv-cache-dtype``.
        sequences: at once; None for as many as leave each of them 16,384 tokens, or ``context`` if it is given.
        context: tokens that every one of ``sequences`` has; None for what is left.
        each: with ``sequences`` alone, whether the context found is one that all have at once.
        images: whether to load the vision tower; None to load it where that leaves 131,072 tokens, or ``context``.
        utilization: as in ``--gpu-memory-utilization``.
        reserve: for what runs besides weights and cache.
        state_dtype, tensor_parallel, checkpoints: as in :func:`cache_layout`.
        batched_tokens: as in ``--max-num-batched-tokens``; handed through.

    Raises:
        UnsupportedArchitectureError: no family recognises the checkpoint's config.
        CheckpointError: the config has an absurd dimension.
        HybridError: the heads cannot be divided among so many GPUs.
    """
    weights = weight_bytes(checkpoint)
    loaded = weights.rank(tensor_parallel) if tensor_parallel > 1 else weights
    usable = int(memory * CUDA_SHARE * utilization)
    layout = cache_layout(
        checkpoint,
        drafts=drafts,
        kv_dtype=kv_dtype,
        state_dtype=state_dtype,
        tensor_parallel=tensor_parallel,
        checkpoints=checkpoints,
    )

    def left(with_images: bool) -> int:
        taken = loaded.served(drafts=bool(drafts), images=with_images)
        return max(0, usable - taken - reserve - with_images * VISION.expected)

    if images is None:
        images = weights.vision > 0 and _room_for_images(layout, left(True), sequences, context)
    cache = left(images)
    if context is not None:
        at_once = layout.at_once(cache, context)
        sequences = sequences or max(1, at_once)
        found = context if at_once else 0
    else:
        limit = checkpoint.text_config.get("max_position_embeddings")
        sequences = sequences or _most_sequences(layout, cache)
        found = layout.longest(cache, sequences) if each else layout.tokens(cache, sequences)
        found = min(found, limit) if isinstance(limit, int) and limit > 0 else found
        if found > _ROUND:
            found = found // _ROUND * _ROUND
    return Fit(
        usable=usable,
        utilization=utilization,
        weights=weights,
        images=images,
        drafts=drafts,
        kv_dtype=kv_dtype,
        cache=cache,
        layout=layout,
        sequences=sequences,
        tokens=layout.tokens(cache, sequences),
        context=found,
        state_dtype=state_dtype,
        tensor_parallel=tensor_parallel,
        batched_tokens=batched_tokens,
    )


def _room_for_images(layout: CacheLayout, cache: int, sequences: int | None, context: int | None) -> bool:
    if context is not None:
        return layout.at_once(cache, context) >= (sequences or 1)
    return layout.tokens(cache, sequences or _most_sequences(layout, cache)) >= _TOKENS_WITH_IMAGES


def _most_sequences(layout: CacheLayout, cache: int) -> int:
    return next((n for n, each in _SEQUENCES if layout.tokens(cache, n) >= n * each), 1)


def parse_size(text: str) -> int | None:
    """Read an amount of memory such as ``24GiB``, ``24 GB`` or ``24G``, in bytes; None if it is none.

    As cards are sold, all three mean 2**30 bytes.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:GiB|GB|G)\s*", text, re.IGNORECASE)
    if match is None:
        return None
    size = int(float(match[1]) * GIB)
    if not GIB <= size <= 10_000 * GIB:
        raise HybridError(f"{text.strip()} is no GPU's memory", remedy="Give it in GiB, such as: 24GiB")
    return size
