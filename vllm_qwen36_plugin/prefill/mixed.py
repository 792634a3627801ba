"""Steps that mix prompts with decoding: activations of 8 bits are for rows of prompts alone.

What a user reads must not depend on how many others the server has at the moment. So rows of decoding and of
verifying drafts keep 16 bits, whatever shares their step. Where such rows come first, a call is cut in two. A CUDA
graph is replayed for any step of its size, so none holds activations of 8 bits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from vllm_qwen36_plugin.upstream.decode_rows import rows_in

# Without times: so many tokens beyond a route's start pay for a second reading of the packed weight. The weight is
# read in the time of at most 128 tokens (Marlin, H200), and a dense route saves at least half of each token.
_BEYOND = 256
# And so many for each row before them: on Hopper 8 bits save 0.21 of Marlin's time a token over `exact`, which
# the rows that stay behind would have taken too (bench/prefill, 8,192 tokens).
_EACH = 3
# What a step's forward context keeps the answer under.
_KEPT = "qwen36_rows"


def before_prompts(tokens: int) -> int:
    """Count a call's first rows that may belong to decoding; ``tokens`` if any row may.

    Outside a step with requests there is none: vLLM's trials of the memory, and ours.
    """
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if not is_forward_context_available():
        return 0
    context = get_forward_context()
    if context.attn_metadata is None:
        return 0
    # Looked up once a step: a model has a hundred entries and hundreds of calls.
    kept = vars(context)
    if _KEPT not in kept:
        kept[_KEPT] = rows_in(context.attn_metadata)
    rows = kept[_KEPT]
    # A draft model's step publishes nothing. Fewer rows than the step has are a part of it, and which is not known.
    return tokens if rows is None or tokens < rows.all else min(rows.before_prompts, tokens)


def pays(
    tokens: int,
    first: int,
    start: int,
    whole: Mapping[int, float] | None,
    before: Mapping[int, float] | None,
    route: Mapping[int, float] | None,
) -> bool:
    """Whether to cut a call: ``first`` rows by a way with 16 bits, the others by a route with 8.

    Args:
        start: number of tokens from which the route is taken alone.
        whole: microseconds by number of tokens of what serves all rows otherwise; None if not measured.
        before: the same of what serves the first rows.
        route: the same of the route.
    """
    rest = tokens - first
    if rest < start:
        return False
    if whole and before and route:
        return microseconds(before, first) + microseconds(route, rest) <= microseconds(whole, tokens)
    return rest >= start + _BEYOND + _EACH * first


def microseconds(times: Mapping[int, float], tokens: int) -> float:
    """Read a time between two measured ones, in line; the least is taken whole, and the most grows."""
    counts = sorted(times)
    place = bisect_left(counts, tokens)
    if place == 0:
        return times[counts[0]]
    before = counts[place - 1]
    if place == len(counts):
        return times[before] * tokens / before
    after = counts[place]
    share = (tokens - before) / (after - before)
    return times[before] + share * (times[after] - times[before])
