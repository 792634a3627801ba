"""The grid of cells to measure, and the ``vllm serve`` to measure with. Refuses what would fail after an hour."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gptq_hybrid.calibration.prompts import Prompts
from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.checkpoint.files import open_files
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.vllm_server import cpu_arguments
from gptq_hybrid.doctor import inspect, installed_vllm
from gptq_hybrid.doctor.serve_line import Schedule, serve_arguments, speculative_config
from gptq_hybrid.doctor.vllm_releases import plugin_installed
from gptq_hybrid.hooks import GpuProfile

Context = Literal["short", "long"]
CONTEXTS: tuple[Context, ...] = ("short", "long")
COUNTS, BATCHES = (0, 1, 2, 3, 4), (1, 4, 16)
LONG_TOKENS = 8192
# Requests of a repeat: twice the number in flight, so that for most of the time that many are.
_ROUNDS, _LEAST_REQUESTS = 2, 8
# Tokens by which the count of the parts and the count of the whole may differ.
_SLACK = 64
# Flags that the command sets itself, or that would measure something else.
_RESERVED = {
    "--speculative-config": "the command sets it; give counts of drafts with --numbers",
    "-sc": "the command sets it; give counts of drafts with --numbers",
    "--enable-prefix-caching": "prompts are repeated, and would be answered from the cache",
    "--host": "the server is for the measurement only",
    "--port": "the server is for the measurement only",
    "--uds": "the server is for the measurement only",
    "--api-key": "the server is for the measurement only",
    "--ssl-keyfile": "the server is for the measurement only",
    "--model": "the checkpoint is MODEL",
    "--disable-log-stats": "acceptance is read from these counters",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to measure: count of drafts a step, requests in flight, and the context of their prompts."""

    drafts: int
    batch: int
    context: Context


@dataclass(frozen=True)
class Grid:
    """Everything that is measured, and how.

    Attributes:
        checkpoint: the one that is served.
        prompts: those that are asked.
        arguments: of ``vllm serve``, the checkpoint first; without the flag for drafts.
        recommended: of ``vllm serve`` for the user to run: without the flags that only the measurement needs.
        counts: counts of drafts.
        batches: requests in flight.
        contexts: short, long or both.
        long_tokens: tokens of a prompt in a long context.
        max_tokens: most tokens of an answer.
        temperature: of sampling; 0 is greedy.
        requests: of a repeat; None for twice the batch, and at least eight.
        repeats: of a cell.
        on_cpu: whether vLLM runs on the CPU.
        by_batch: whether this vLLM gets drafts by batch size right.
    """

    checkpoint: Checkpoint
    prompts: Prompts
    arguments: tuple[str, ...]
    recommended: tuple[str, ...]
    counts: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[Context, ...]
    long_tokens: int
    max_tokens: int
    temperature: float
    requests: int | None
    repeats: int
    on_cpu: bool
    by_batch: bool = False

    def cells(self, drafts: int) -> list[Cell]:
        """List the cells of one count of drafts, in the order in which they are measured."""
        return [Cell(drafts, batch, context) for context in self.contexts for batch in self.batches]

    @property
    def all_cells(self) -> list[Cell]:
        """All cells, in the order in which they are measured."""
        return [cell for drafts in self.counts for cell in self.cells(drafts)]

    def requests_per_repeat(self, batch: int) -> int:
        """Compute the number of requests of one repeat."""
        return self.requests or max(_ROUNDS * batch, _LEAST_REQUESTS)

    def settings(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """List everything besides the cell that its figures depend on: only cells of equal settings go together."""
        return {
            "model": self.checkpoint.location,
            "prompts": self.prompts.sha256,
            "serve": list(self.arguments),
            "long_tokens": self.long_tokens,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "requests": self.requests,
            "repeats": self.repeats,
            "environment": dict(environment),
        }


def count_of_drafts(count: int) -> str:
    """Say a count of drafts in words: ``no drafts``, ``1 draft``, ``2 drafts``."""
    return f"{count or 'no'} draft{'s' * (count != 1)}"


def speculative_flags(drafts: int, schedule: Schedule = ()) -> list[str]:
    """Make the flags of ``vllm serve`` for a count of drafts, or the most of a schedule; empty for 0."""
    return ["--speculative-config", speculative_config(drafts, schedule)] if drafts else []


def open_checkpoint(model: str, counts: Sequence[int]) -> Checkpoint:
    """Open a checkpoint and check that it serves.

    Raises:
        HybridError: it cannot be read, it has no MTP head although drafts are to be measured, or ``qwen36 check``
            finds an error in it.
    """
    checkpoint = Checkpoint.read(open_files(model))
    drafts = any(counts)
    if drafts and not layout_for(checkpoint.config).mtp:
        raise HybridError(
            f"{model} has no MTP head: its config.json has none",
            remedy="Drafts need an MTP head. To graft one run: qwen36 repair --mtp-from ORIGINAL",
        )
    report = inspect(checkpoint, mtp=drafts, vllm=installed_vllm(), plugin=plugin_installed())
    if report.errors:
        first = report.errors[0]
        more = f" (and {len(report.errors) - 1} more)" if len(report.errors) > 1 else ""
        raise HybridError(
            f"{model}: {first.message}{more}", remedy=f"{first.remedy}\nRun: qwen36 check {model}"
        )
    return checkpoint


def serve_flags(
    checkpoint: Checkpoint,
    extra: str,
    *,
    profile: GpuProfile | None,
    batches: Sequence[int],
    counts: Sequence[int],
    length: int,
    on_cpu: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Make the arguments of ``vllm serve`` for measuring, and those for use, both without the flag for drafts.

    Args:
        checkpoint: the one that is served.
        extra: the user's own arguments, as typed. They go last, because vLLM goes by the last of two.
        profile: of the GPU; its flags are used if the user gives none.
        counts: numbers of drafts; there must be memory for the most of them.
        batches: requests in flight; the server must take as many.
        length: most tokens of prompt and answer together.
        on_cpu: whether vLLM runs on the CPU, which needs flags of its own.

    Raises:
        HybridError: ``extra`` cannot be split, or has a flag that the measurement sets.
    """
    words = _split(extra)
    names = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("-")}
    for name, reason in _RESERVED.items():
        if name in names or any(n.startswith(f"{name}.") for n in names):
            raise HybridError(f"--vllm-args may not have {name}: {reason}", remedy="Leave it out.")
    limit = _value(words, "--max-num-seqs")
    if limit is not None and limit.isdigit() and int(limit) < max(batches):
        raise HybridError(
            f"--max-num-seqs {limit} does not let {max(batches)} requests run at once",
            remedy=f"Give --batches up to {limit}, or a larger --max-num-seqs in --vllm-args.",
        )
    card = None if words else profile
    base = serve_arguments(checkpoint, card, drafts=0, chat=False, most_drafts=max(counts))
    cpu = cpu_arguments() if on_cpu else []
    for_measuring: list[str] = [] if on_cpu else ["--no-enable-prefix-caching"]
    for name, value in (("--max-num-seqs", max(batches)), ("--max-model-len", length)):
        if name not in names:
            for_measuring += [name, str(value)]
    for_use = serve_arguments(checkpoint, card, drafts=0, most_drafts=max(counts))
    return (*base, *cpu, *for_measuring, *words), (*for_use, *cpu, *words)


def token_limits(checkpoint: Checkpoint, long_tokens: int | None, max_tokens: int) -> tuple[int, int]:
    """Decide the tokens of a long prompt, and the most tokens of prompt and answer together.

    Args:
        long_tokens: the user's wish for the prompt; None for the default, or as many as the model takes.
        max_tokens: most tokens of an answer.

    Raises:
        HybridError: they are more than the model takes.
    """
    limit = checkpoint.text_config.get("max_position_embeddings")
    most = limit if isinstance(limit, int) and limit > 0 else 1 << 30
    room = most - max_tokens - _SLACK
    if room < 1 or (long_tokens or 0) > room:
        raise HybridError(
            f"a prompt of {long_tokens or 1:,} tokens and an answer of {max_tokens:,} are more than the "
            f"{most:,} that {checkpoint.location} takes (less {_SLACK} of slack)",
            remedy="Give fewer with --long-tokens or --max-tokens.",
        )
    tokens = long_tokens or min(LONG_TOKENS, room)
    return tokens, min(most, max(tokens, LONG_TOKENS) + max_tokens + _SLACK)


def _split(extra: str) -> list[str]:
    try:
        return shlex.split(extra)
    except ValueError as error:
        raise HybridError(
            f"--vllm-args {extra!r} cannot be split into words: {error}",
            remedy="Quote it as a whole, such as: --vllm-args '--kv-cache-dtype fp8'",
        ) from error


def _value(words: Sequence[str], name: str) -> str | None:
    """Return the value of the last ``name VALUE`` or ``name=VALUE``."""
    result = None
    for at, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key.replace("_", "-") == name:
            result = value if equals else words[at + 1] if at + 1 < len(words) else None
    return result
