"""Have all ranks of one model serve alike: where they would choose differently, the slowest decides.

A step of several ranks takes as long as the slowest of them. One that leaves vLLM's kernel earlier than the others
would only wait for them. Each measures shapes of its own part; these are the same on every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.report import note
from vllm_qwen36_plugin.upstream.tensor_parallel import rank, told

from .dispatch import Linear
from .profile import GemmName, Ranges, Route, Starts


@dataclass(frozen=True, slots=True)
class Choice:
    """What one rank would do with the linears of a shape: as in :class:`~.dispatch.Linear`."""

    starts: Starts
    routes: tuple[Route, ...]
    gemms: tuple[GemmName, ...]


def agree(linears: Iterable[Linear]) -> None:
    """Exchange the choices of all ranks and take over the common ones. Every rank has to call it."""
    linears = list(linears)
    mine = {linear.shape.key: Choice(linear.starts, linear.routes, linear.gemms) for linear in linears}
    everyone = told(mine)
    common = slowest(everyone)
    for linear in linears:
        choice = common[linear.shape.key]
        linear.starts, linear.routes, linear.gemms = choice.starts, choice.routes, choice.gemms
    if any(common[key] != choice for choices in everyone for key, choice in choices.items()):
        logger.debug("vllm-qwen36-plugin: ranks measured different starts; the slowest decides")


def tell(path: str, state: str, line: str) -> None:
    """Log a line on one rank, and note it for /metrics without the plugin's name before it."""
    number, size = rank()
    if number == 0:
        line += f" (on each of {size} GPUs)" if size > 1 else ""
        logger.info("%s", line)
        note(path, state, line.partition(": ")[2])


def slowest(everyone: Sequence[Mapping[str, Choice]]) -> dict[str, Choice]:
    """Join the choices of all ranks, by shape. A shape that some rank lacks is joined from those that have it."""
    keys = dict.fromkeys(key for choices in everyone for key in choices)
    return {key: _join([choices[key] for choices in everyone if key in choices]) for key in keys}


def _join(choices: Sequence[Choice]) -> Choice:
    first = choices[0]
    routes = tuple(route for route in first.routes if all(route in other.routes for other in choices))
    gemms = tuple(gemm for gemm in first.gemms if all(gemm in other.gemms for other in choices))
    gemm = first.starts.fp8_gemm
    if gemms and (gemm not in gemms or any(other.starts.fp8_gemm != gemm for other in choices)):
        gemm = gemms[0]
    humming = first.starts.humming
    for other in choices[1:]:
        humming = _both(humming, other.starts.humming)
    starts = replace(
        first.starts,
        exact=_latest([other.starts.exact for other in choices]),
        fp8=_latest([other.starts.fp8 for other in choices]) if gemms else None,
        a8=_latest([other.starts.a8 for other in choices]),
        fp8_gemm=gemm,
        humming=humming,
    )
    return Choice(starts, routes, gemms or first.gemms)


def _latest(starts: Sequence[int | None]) -> int | None:
    """Return the greatest start; None if a route never wins somewhere."""
    known = [start for start in starts if start is not None]
    return max(known) if len(known) == len(starts) else None


def _both(one: Ranges, other: Ranges) -> Ranges:
    """Return the numbers of tokens that both ranges hold."""
    both: list[tuple[int, int | None]] = []
    for first, last in one:
        for begin, end in other:
            low = max(first, begin)
            ends = [each for each in (last, end) if each is not None]
            high = min(ends) if ends else None
            if high is None or low <= high:
                both.append((low, high))
    return tuple(sorted(both))
