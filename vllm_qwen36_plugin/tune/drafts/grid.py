"""What is to be measured, and with which ``vllm serve``: everything refused that would fail after an hour."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.checkpoint.files import open_files
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.vllm_server import cpu_arguments
from gptq_hybrid.doctor import inspect, installed_vllm
from gptq_hybrid.doctor.serve_line import serve_arguments
from gptq_hybrid.doctor.vllm_releases import plugin_installed
from gptq_hybrid.hooks import GpuProfile

from .prompts import Prompts

Context = Literal["short", "long"]
CONTEXTS: tuple[Context, ...] = ("short", "long")
NUMBERS, BATCHES = (0, 1, 2, 3, 4), (1, 4, 16)
LONG_TOKENS = 8192
# Requests a repeat: twice what is in flight, so that most of the time that many are.
_ROUNDS, _LEAST_REQUESTS = 2, 8
# Between what the tokenizer counts in parts and what it makes of the whole.
_SLACK = 64
# What the command sets itself, and what would measure something else.
_OURS = {
    "--speculative-config": "it is what is measured; say which numbers with --numbers",
    "-sc": "it is what is measured; say which numbers with --numbers",
    "--enable-prefix-caching": "prompts come again, and would be answered from the cache",
    "--host": "the server is for the measurement alone",
    "--port": "the server is for the measurement alone",
    "--uds": "the server is for the measurement alone",
    "--api-key": "the server is for the measurement alone",
    "--ssl-keyfile": "the server is for the measurement alone",
    "--model": "the checkpoint is MODEL",
    "--disable-log-stats": "acceptance is read from them",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to measure: drafts a step, requests in flight, and the context their prompts have."""

    drafts: int
    batch: int
    context: Context


@dataclass(frozen=True)
class Plan:
    """All of a measurement.

    Attributes:
        checkpoint: what is served.
        prompts: what it is asked.
        arguments: of ``vllm serve``, the checkpoint first; without the number of drafts.
        recommended: of ``vllm serve`` for the user to run: the same but for what only the measurement needs.
        long_tokens: of a prompt in a long context.
        max_tokens: most of an answer.
        requests: a repeat; None for twice the batch, and at least eight.
        repeats: of a cell.
        on_cpu: whether vLLM runs on the CPU.
    """

    checkpoint: Checkpoint
    prompts: Prompts
    arguments: tuple[str, ...]
    recommended: tuple[str, ...]
    numbers: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[Context, ...]
    long_tokens: int
    max_tokens: int
    temperature: float
    requests: int | None
    repeats: int
    on_cpu: bool

    def cells(self, drafts: int) -> list[Cell]:
        """Those of one number of drafts, in the order they are measured."""
        return [Cell(drafts, batch, context) for context in self.contexts for batch in self.batches]

    @property
    def every(self) -> list[Cell]:
        return [cell for drafts in self.numbers for cell in self.cells(drafts)]

    def asked(self, batch: int) -> int:
        """Requests of one repeat."""
        return self.requests or max(_ROUNDS * batch, _LEAST_REQUESTS)

    def settings(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """What a cell's figures depend on, the cell itself aside: cells of equal settings go together."""
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


def speculative(drafts: int) -> list[str]:
    """The flag of a number of drafts; none for none."""
    if not drafts:
        return []
    return ["--speculative-config", json.dumps({"method": "mtp", "num_speculative_tokens": drafts})]


def read_checkpoint(model: str, numbers: Sequence[int]) -> Checkpoint:
    """The checkpoint, once it is certain that it serves.

    Raises:
        HybridError: it cannot be read, it lacks a head that drafts, or ``qwen36 check`` finds an error in it.
    """
    checkpoint = Checkpoint.read(open_files(model))
    drafts = any(numbers)
    if drafts and not layout_for(checkpoint.config).mtp:
        raise HybridError(
            f"{model} has no MTP head: its config.json has none",
            remedy="Without a head there is nothing to draft with. qwen36 repair --mtp-from ORIGINAL grafts one.",
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
    length: int,
    on_cpu: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Arguments of ``vllm serve`` for measuring, and for use, both without the number of drafts.

    Args:
        checkpoint: what is served.
        extra: the user's own, as typed; they go last, where vLLM goes by them.
        profile: of the GPU, whose flags are used where the user gives none.
        batches: to be in flight; the server is to take as many.
        length: tokens that prompt and answer may have together.
        on_cpu: whether vLLM runs on the CPU, which needs flags of its own.

    Raises:
        HybridError: ``extra`` cannot be split, or has a flag that the measurement sets.
    """
    given = _split(extra)
    names = {word.partition("=")[0].replace("_", "-") for word in given if word.startswith("-")}
    for name, reason in _OURS.items():
        if name in names or any(n.startswith(f"{name}.") for n in names):
            raise HybridError(f"--vllm-args may not have {name}: {reason}", remedy="Leave it out.")
    seats = _value(given, "--max-num-seqs")
    if seats is not None and seats.isdigit() and int(seats) < max(batches):
        raise HybridError(
            f"--max-num-seqs {seats} lets no {max(batches)} requests run at once",
            remedy=f"Give --batches up to {seats}, or a larger --max-num-seqs in --vllm-args.",
        )
    base = serve_arguments(checkpoint, None if given else profile, drafts=0, chat=False)
    cpu = cpu_arguments() if on_cpu else []
    ours: list[str] = [] if on_cpu else ["--no-enable-prefix-caching"]
    for name, value in (("--max-num-seqs", max(batches)), ("--max-model-len", length)):
        if name not in names:
            ours += [name, str(value)]
    shown = serve_arguments(checkpoint, None if given else profile, drafts=0)
    return (*base, *cpu, *ours, *given), (*shown, *cpu, *given)


def longest(checkpoint: Checkpoint, long_tokens: int | None, max_tokens: int) -> tuple[int, int]:
    """Tokens of a long prompt, and of prompt and answer together at most.

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
    """What the last ``name VALUE`` or ``name=VALUE`` says."""
    found = None
    for at, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key.replace("_", "-") == name:
            found = value if equals else words[at + 1] if at + 1 < len(words) else None
    return found
