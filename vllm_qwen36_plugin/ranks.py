"""What must be the same on every rank of a model: what is said, and what is done when something failed on one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Made = TypeVar("Made")


class RankError(RuntimeError):
    """Something failed on one rank at least; the message says why, and on which GPU if there are several."""


def first_rank() -> bool:
    """Whether this process is the one that speaks for all ranks of tensor parallelism."""
    from .upstream.tensor_parallel import rank

    return rank().number == 0


def agreed(make: Callable[[], Made]) -> Made:
    """Make something on every rank, or on none: a rank that goes another way would leave the others waiting.

    Args:
        make: called on each rank; it may fail on some, and may not communicate.

    Raises:
        RankError: it failed on some rank. All ranks raise the same.
    """
    from .upstream.tensor_parallel import rank, told

    error: Exception | None = None
    try:
        made = make()
    except Exception as caught:  # noqa: BLE001 - raised below, on every rank
        error = caught
    reasons = told(None if error is None else str(error) or repr(error))
    failed = [(number, reason) for number, reason in enumerate(reasons) if reason is not None]
    if not failed:
        return made
    number, reason = failed[0]
    where = f" (on GPU {number} of {len(reasons)})" if rank().size > 1 else ""
    raise RankError(f"{reason}{where}") from error


def on_each_rank(problems: Sequence[Sequence[str]]) -> list[str]:
    """Join what the ranks found wrong: once what all found, and with the GPU what some did.

    Args:
        problems: of each rank.
    """
    common = [each for each in problems[0] if all(each in others for others in problems)]
    of_some = [
        f"on GPU {number} of {len(problems)}: {each}"
        for number, found in enumerate(problems)
        for each in found
        if each not in common
    ]
    return common + of_some
