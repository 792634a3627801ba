"""Which variants go through the layers together, so that their states fit main memory."""

from __future__ import annotations

from collections.abc import Sequence

from gptq_hybrid.common.errors import HybridError

from ._walk import Variant

# Copies of the states besides the variants': the reference as it goes along, at the next group's first layer, at
# the end, and one that is being made.
_OTHERS = 4
# Results are written when a group is through, so an interruption costs at most a group. An eighth of the depth
# makes 8 groups of the 27B, which read 288 layers instead of 64: about 240 GB.
_PARTS = 8


def capacity(memory: int, state_bytes: int) -> int:
    """How many variants' states fit ``memory`` bytes.

    Raises:
        HybridError: not even one.
    """
    found = memory // state_bytes - _OTHERS
    if found < 1:
        need = (_OTHERS + 1) * state_bytes / 2**30
        raise HybridError(
            f"hidden states of these documents need {need:.2f} GiB of main memory, "
            f"and {memory / 2**30:.2f} are given",
            remedy="Give more with --memory, or fewer or shorter documents with --limit and --max-length.",
        )
    return found


def groups_of(variants: Sequence[Variant], most: int, depth: int) -> list[list[Variant]]:
    """Variants by first layer, at most ``most`` together, of at most an eighth of the layers."""
    span = -(-depth // _PARTS)
    groups: list[list[Variant]] = []
    for variant in sorted(variants, key=lambda v: v.first):
        if groups and len(groups[-1]) < most and variant.first - groups[-1][0].first < span:
            groups[-1].append(variant)
        else:
            groups.append([variant])
    return groups
