"""What the KV line of a start-up log means on a hybrid, and what could be gained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.tables import ReportTable, report_table
from gptq_hybrid.common.units import size_text
from gptq_hybrid.memory import CPU_ALIGNMENT, KV_DTYPES, CacheLayout, cache_layout, weight_bytes

from .startup_log import StartupLog

# How the line was counted: the blocks of one group of several, or whole requests of --max-model-len.
Counted = Literal["one group", "requests", "unknown"]
# A log gives sizes to two decimals of a GiB; so far may a count be off for that.
_ROUNDING = int(0.005 * (1 << 30))
# What a second start got more than the first, which compiled: 1.85 GiB (RTX 8000, 27B), nothing on a V100.
_COLD = "up to about 1.9 GiB"
_UTILIZATION = 0.95
# Where --max-num-seqs leaves each fewer tokens, as its default of 256 does, figures are for as many as have these.
_USEFUL = 4096


@dataclass(frozen=True, slots=True)
class Gain:
    """One change: tokens each of the sequences would have, and what it costs; None where bytes are not known."""

    change: str
    tokens: int | None
    costs: str


@dataclass(frozen=True)
class Explanation:
    """What a log means.

    Attributes:
        log: what it says.
        layout: how that cache is divided.
        counted: how its "KV cache size" was counted.
        sequences: at once, that the figures below are for.
        alone: tokens that one sequence alone can have.
        each: tokens that each of ``sequences`` can have at once.
        gains: what could be changed.
    """

    log: StartupLog
    layout: CacheLayout
    counted: Counted
    sequences: int
    alone: int
    each: int
    gains: tuple[Gain, ...]

    @property
    def groups(self) -> int:
        """Groups of layers that share the pool of blocks."""
        layout = self.layout
        return -(-layout.attention_layers // layout.group_layers) + layout.sequence_blocks // layout.states


def explain(log: StartupLog, checkpoint: Checkpoint) -> Explanation:
    """Hold what a log says against the arithmetic of this architecture.

    Raises:
        UnsupportedArchitectureError: the checkpoint is none of this family.
        HybridError: the log lacks the size of the cache, or names a KV dtype that is not known here.
    """
    if log.cache_bytes is None:
        raise HybridError(
            "the log does not say how much memory the KV cache got",
            remedy="Look for the line `Available KV cache memory`; give the log from the very start.",
        )
    if log.kv not in KV_DTYPES:
        raise HybridError(
            f"a KV cache in {log.kv} is not known here", remedy=f"Known: {', '.join(KV_DTYPES)}."
        )
    layout = _layout(log, checkpoint)
    length = log.length or layout.block_tokens
    sequences = log.sequences or max(1, layout.at_once(log.cache_bytes, length))
    useful = min(length, _USEFUL)
    if layout.longest(log.cache_bytes, sequences) < useful:
        sequences = max(1, layout.at_once(log.cache_bytes, useful))
    found = Explanation(
        log=log,
        layout=layout,
        counted="unknown",
        sequences=sequences,
        alone=layout.tokens(log.cache_bytes, 1),
        each=layout.longest(log.cache_bytes, sequences),
        gains=(),
    )
    return replace(found, counted=_counted(found, length), gains=tuple(_gains(found, checkpoint)))


def _layout(log: StartupLog, checkpoint: Checkpoint, **changes: Any) -> CacheLayout:
    asked: dict[str, Any] = {
        "drafts": log.drafts,
        "kv_dtype": log.kv,
        "prefix_caching": log.prefix_caching is not False,
        "state_dtype": log.state,
        "tensor_parallel": log.tensor_parallel,
    }
    if log.device == "CPU":
        asked["alignment"] = CPU_ALIGNMENT
    made = cache_layout(checkpoint, **{**asked, **changes})
    if not changes and log.block_tokens and log.block_tokens != made.block_tokens:
        return replace(made, block_tokens=log.block_tokens)
    return made


def _counted(found: Explanation, length: int) -> Counted:
    log, layout = found.log, found.layout
    if log.tokens is None or log.cache_bytes is None:
        return "unknown"
    low, high = (log.cache_bytes + change for change in (-_ROUNDING, _ROUNDING))
    if layout.reported_tokens(low, length) <= log.tokens <= layout.reported_tokens(high, length):
        return "requests"
    one, most = (size // layout.block_bytes // found.groups * layout.block_tokens for size in (low, high))
    return "one group" if one <= log.tokens <= most else "unknown"


def _gains(found: Explanation, checkpoint: Checkpoint) -> Iterator[Gain]:
    log, number = found.log, found.sequences
    cache = log.cache_bytes or 0
    weights = weight_bytes(checkpoint)

    def with_(size: int = cache, **changes: Any) -> int:
        return _layout(log, checkpoint, **changes).longest(size, number)

    if log.drafts:
        yield Gain(
            "no drafts",
            with_(cache + weights.mtp // log.tensor_parallel, drafts=0),
            "the speed that accepted drafts bring",
        )
        if log.drafts > 1:
            yield Gain(
                f"{log.drafts - 1} in place of {log.drafts} drafts", with_(drafts=log.drafts - 1), "a draft"
            )
    if KV_DTYPES[log.kv][0] == 2:
        cards = "" if log.device == "CPU" else "; Ada and later"
        yield Gain("--kv-cache-dtype fp8", with_(kv_dtype="fp8"), f"precision of keys and values{cards}")
    if KV_DTYPES[log.kv][0] >= 1 and log.device != "CPU":
        yield Gain(
            "--kv-cache-dtype int4_per_token_head",
            with_(kv_dtype="int4_per_token_head"),
            "more precision, and speed: Triton's kernels of attention; 0.26 and later",
        )
    if log.state == "auto":
        yield Gain(
            "--mamba-ssm-cache-dtype float16",
            with_(state_dtype="float16"),
            "precision of the states; what that does to text was not measured here",
        )
    if weights.vision and not log.text_only and log.device != "CPU":
        size = cache + weights.vision // log.tensor_parallel
        yield Gain('--limit-mm-per-prompt \'{"image": 0, "video": 0}\'', with_(size), "images")
    if log.prefix_caching is not False and log.device != "CPU":
        yield Gain(
            "--no-enable-prefix-caching",
            with_(prefix_caching=False),
            "every turn of a conversation is read anew",
        )
    if log.compiled:
        yield Gain(
            "start again",
            None,
            f"nothing: this start compiled, which vLLM counts as activations; the next may get {_COLD} more",
        )
    if log.utilization is not None and log.utilization < _UTILIZATION:
        yield Gain(
            f"--gpu-memory-utilization {_UTILIZATION}",
            None,
            f"room for others on the card; {_UTILIZATION - log.utilization:.0%} of its memory more",
        )


def sentences(found: Explanation) -> Iterator[str]:
    """Say what the log means."""
    log, layout = found.log, found.layout
    cache = log.cache_bytes or 0
    version = f"vLLM {log.version}" if log.version else "vLLM"
    if log.tokens is None:
        needed = (
            f": one request of {log.length:,} tokens needs {size_text(log.needed_bytes)}"
            if (log.needed_bytes and log.length)
            else ""
        )
        yield f"{version} had {size_text(cache)} for its KV cache and did not start{needed}."
    elif found.counted == "one group":
        yield (
            f"{version} logged {log.tokens:,} tokens, which is 1/{found.groups} of the cache: it counts "
            f"the blocks of one "
            f"of {found.groups} groups of layers, though all draw from one pool. One sequence can have "
            f"{found.alone:,} tokens."
        )
    elif found.counted == "requests":
        yield (
            f"{version} logged {log.tokens:,} tokens: --max-model-len ({log.length:,}) times the requests "
            f"of that length "
            f"that fit at once ({log.tokens / (log.length or 1):.2f}), each with its states. It is no "
            f"number of tokens "
            "that any load could fill: with another --max-model-len it is another."
        )
    else:
        yield (
            f"{version} logged {log.tokens:,} tokens, which neither way of counting known here gives for "
            f"{size_text(cache)}: a release or an option that was not read, or another checkpoint."
        )
    states = layout.sequence_bytes
    yield (
        f"Of {size_text(cache)} each running sequence takes {size_text(states)} for its Gated-DeltaNet "
        f"states, whatever "
        f"its length, and a token {layout.token_bytes * layout.attention_layers:,} bytes. So one sequence "
        f"alone can "
        f"have {found.alone:,} tokens, {found.sequences} at once {found.each:,} each."
    )
    if log.length and found.alone > log.length and found.sequences == 1:
        yield f"--max-model-len {log.length:,} is less than fits: up to {found.alone:,}."
    if log.length and found.each < log.length and found.sequences > 1:
        yield (
            f"{found.sequences} requests of {log.length:,} tokens do not fit at once; "
            f"{layout.at_once(cache, log.length)} "
            "do, and the others wait or are put off and read again."
        )


def gains_table(found: Explanation) -> ReportTable:
    """What could be changed, and what it would bring."""
    table = report_table(
        f"What could be gained; now {found.each:,} tokens for each of {found.sequences}",
        "From the memory that this start had. No drafts and no images free their weights, too.",
    )
    table.add_column("change", no_wrap=True)
    table.add_column("tokens each", justify="right")
    table.add_column("costs", overflow="fold")
    for gain in found.gains:
        table.add_row(gain.change, "" if gain.tokens is None else f"{gain.tokens:,}", gain.costs)
    return table


def as_json(found: Explanation) -> dict[str, Any]:
    """For programs."""
    layout = found.layout
    return {
        "log": asdict(found.log),
        "counted": found.counted,
        "groups": found.groups,
        "sequences": found.sequences,
        "tokens_alone": found.alone,
        "tokens_each": found.each,
        "bytes_per_token": layout.token_bytes * layout.attention_layers,
        "state_bytes_per_sequence": layout.sequence_bytes,
        "block_tokens": layout.block_tokens,
        "gains": [asdict(gain) for gain in found.gains],
        "answers": list(sentences(found)),
    }
