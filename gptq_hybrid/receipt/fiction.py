"""Why a figure of a receipt may not mean what it seems to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor import check
from gptq_hybrid.live import Reading, advise

from .load import LEAST_TOKENS
from .record import Measured, Receipt

# Of these, receipts cannot be compared.
FICTION = frozenset(
    {"random-prompts-with-drafts", "prefix-hits", "dead-head", "nan-logits", "other-requests"}
)
_FEW_HITS = 0.01
# Advice of `qwen36 doctor` that says what the figures are worth; the rest is about how to serve.
_LIVE = frozenset({"dead-head", "nan-logits", "all-accepted", "no-counters"})

Warning = dict[str, str]


def _warning(rule: str, message: str) -> Warning:
    return {"rule": rule, "message": message}


def before(receipt: Receipt, reading: Reading) -> Iterator[Warning]:
    """Look at what is about to be measured."""
    server, plan = receipt.server, receipt.plan
    synthetic = server["rejection"] == "synthetic"
    if plan.random_tokens and server["speculates"] and not synthetic:
        yield _warning(
            "random-prompts-with-drafts",
            "prompts are random tokens and the server drafts: how many are accepted is an accident, and so is each "
            "decode figure. Measure real prompts, or fix the rate: rejection_sample_method synthetic",
        )
    if synthetic:
        given = server["synthetic_rates"] or server["synthetic_length"]
        yield _warning(
            "synthetic-acceptance",
            f"drafts are accepted at a given rate ({given}), whatever they are: times have a meaning, texts none",
        )
    most = server["max_num_seqs"]
    if most is not None and most < max(plan.batches):
        yield _warning(
            "queueing",
            f"{max(plan.batches)} requests in flight, and the server runs {most} at once: the time to the first "
            "token holds the wait for a place",
        )
    if reading.running or reading.waiting:
        yield _warning(
            "busy",
            f"{reading.running + reading.waiting} requests of others run on this server while it is measured",
        )
    if plan.contexts and not plan.random_tokens and server["prefix_caching"] is not True:
        why = (
            "caches no prefixes"
            if server["prefix_caching"] is False
            else "does not say whether it caches prefixes"
        )
        yield _warning("no-warm-cache", f"the server {why}: a warm cache was not measured")


def of_checkpoint(folder: Path, *, vllm: str | None, plugin: bool) -> Iterator[Warning]:
    """Say what ``qwen36 check`` calls faulty."""
    try:
        report = check(folder, vllm=vllm, plugin=plugin)
    except HybridError as error:
        yield _warning("faulty-checkpoint", f"qwen36 check cannot read it: {error.message}")
        return
    if report.errors:
        more = f"; and {len(report.errors) - 1} more" if len(report.errors) > 1 else ""
        yield _warning("faulty-checkpoint", f"qwen36 check: {report.errors[0].message}{more}")


def after(receipt: Receipt, reading: Reading) -> Iterator[Warning]:
    """Look at what was measured; ``reading`` holds the counts of the whole measurement."""
    for finding in advise(reading):
        if finding.rule in _LIVE and not (
            finding.rule == "all-accepted" and receipt.server["rejection"] == "synthetic"
        ):
            yield _warning(finding.rule, finding.message)
    for measured in receipt.cells.values():
        yield from _of_cell(measured)


def _of_cell(measured: Measured) -> Iterator[Warning]:
    cell, repeats = measured.cell, measured.repeats
    queries = sum(repeat.counters.cache_queries for repeat in repeats)
    hits = sum(repeat.counters.cache_hits for repeat in repeats)
    if cell.cache == "cold" and hits > _FEW_HITS * queries:
        yield _warning(
            "prefix-hits",
            f"{cell.name}: {hits / queries:.0%} of the prompt tokens came from the prefix cache, so the time to "
            "the first token is of less than the prompt",
        )
    if cell.cache == "warm" and not hits:
        yield _warning("no-hits", f"{cell.name}: no prompt token came from the prefix cache")
    if put_off := sum(repeat.counters.preemptions for repeat in repeats):
        yield _warning("preemptions", f"{cell.name}: {put_off} times a request was put off and read again")
    sent = sum(len(repeat.ttft_ms) for repeat in repeats)
    counted = sum(repeat.counters.requests for repeat in repeats)
    if counted > sent:
        yield _warning(
            "other-requests", f"{cell.name}: the server answered {counted - sent} requests of others"
        )
    answers = [count for repeat in repeats for count in repeat.output_tokens]
    if sum(count < LEAST_TOKENS for count in answers) > len(answers) / 2:
        yield _warning(
            "short-answers",
            f"{cell.name}: most answers have fewer than {LEAST_TOKENS} tokens, and so no time per token",
        )
