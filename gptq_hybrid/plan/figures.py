"""Where every byte of a card goes, part by part, and how sure each figure is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptq_hybrid.memory import PARTS, VISION, Fit

from .question import Question

Kind = Literal["exact", "derived", "estimated"]


@dataclass(frozen=True, slots=True)
class Figure:
    """Bytes of one part, on one GPU.

    Attributes:
        part: what it is, for people.
        group: what it belongs to: ``weights``, ``keys and values``, ``states``, ``free cache``, ``running``,
            ``not used``.
        bytes: as expected.
        kind: ``exact`` follows from headers and vLLM's own arithmetic, ``derived`` from public figures,
            ``estimated`` from measurements elsewhere.
        low, high: the margin; both ``bytes`` where it is exact.
        why: a reason, or where it comes from.
    """

    part: str
    group: str
    bytes: int
    kind: Kind
    low: int
    high: int
    why: str


def figures(question: Question, fit: Fit, *, tokens: int) -> list[Figure]:
    """List the parts of one card; they add up to its memory.

    Args:
        tokens: that each of ``fit.sequences`` holds.
    """
    parts = [*_weights(fit), *_sequences(fit, tokens)]
    running = [
        Figure(part.name, "running", part.expected, "estimated", part.low, part.high, part.source)
        for part in (*PARTS, *([VISION] if fit.images else []))
    ]
    used = sum(figure.bytes for figure in parts) + sum(figure.bytes for figure in running)
    free = max(0, fit.usable - used)
    slack = (
        sum(figure.high - figure.bytes for figure in running),
        sum(figure.bytes - figure.low for figure in running),
    )
    rest = question.memory - fit.usable
    return [
        *parts,
        Figure(
            "free cache",
            "free cache",
            free,
            "estimated",
            max(0, free - slack[0]),
            free + slack[1],
            "keeps prefixes and their states until a sequence needs the room",
        ),
        *running,
        Figure(
            "left alone",
            "not used",
            rest,
            "derived",
            rest,
            rest,
            f"what CUDA does not give out (2 %), and all but {question.utilization:g} of the rest",
        ),
    ]


def _exact(part: str, group: str, size: int, why: str) -> Figure:
    return Figure(part, group, size, "exact", size, size, why)


def _weights(fit: Fit) -> list[Figure]:
    ranks = fit.tensor_parallel
    weights = fit.weights.rank(ranks) if ranks > 1 else fit.weights
    stored = "as stored" if ranks == 1 else f"as stored, divided among {ranks}"
    parts = [
        ("linears", weights.linears),
        ("embedding", weights.embedding),
        ("output head", weights.output_head),
        ("MTP head", weights.mtp if fit.drafts else 0),
        ("vision tower", weights.vision if fit.images else 0),
        ("norms and the rest", weights.rest),
    ]
    kind: Kind = "exact" if ranks == 1 else "derived"
    return [Figure(name, "weights", size, kind, size, size, stored) for name, size in parts if size]


def _sequences(fit: Fit, tokens: int) -> list[Figure]:
    """What ``fit.sequences`` of ``tokens`` each hold; drafts and prefix cache have lines of their own."""
    layout, sequences = fit.layout, fit.sequences
    mtp_layers = 1 if fit.drafts else 0
    value = layout.token_bytes * tokens * sequences
    recurrent = layout.state_layers * (layout.state_bytes - layout.convolution_bytes) * sequences
    convolution = layout.state_layers * layout.convolution_bytes * sequences
    kept = layout.states - 1 - fit.drafts
    blocks = sequences * (layout.sequence_blocks + layout.token_blocks(tokens)) + 1
    found = [
        _exact(
            "keys and values",
            "keys and values",
            value * (layout.attention_layers - mtp_layers),
            f"{sequences} × {tokens:,} tokens × {layout.attention_layers - mtp_layers} layers, {fit.kv_dtype}",
        ),
        _exact(
            "keys and values of the MTP layer",
            "keys and values",
            value * mtp_layers,
            "one more layer with drafts",
        ),
        _exact(
            "Gated-DeltaNet states",
            "states",
            recurrent,
            f"one for each of {sequences}, whatever its length",
        ),
        _exact("convolution states", "states", convolution, "the same"),
        _exact(
            "states for drafts",
            "states",
            (recurrent + convolution) * fit.drafts,
            f"{fit.drafts} more for each, as a rejected draft must be undone",
        ),
        _exact(
            "states for the prefix cache",
            "states",
            (recurrent + convolution) * kept,
            "a running sequence keeps the state at its last whole block"
            + (", and what FlashInfer's prefill exports" if kept > 1 else ""),
        ),
    ]
    used = sum(figure.bytes for figure in found)
    found.append(
        _exact(
            "rounding",
            "states",
            blocks * layout.block_bytes - used,
            f"blocks of {layout.block_tokens:,} tokens",
        )
    )
    return [figure for figure in found if figure.bytes]
