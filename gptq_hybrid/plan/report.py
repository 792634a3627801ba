"""A plan for people and for programs: sentences, tables, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from gptq_hybrid.common.tables import ReportTable, plain, report_table
from gptq_hybrid.common.units import range_text, size_text

from .figures import Figure
from .question import ACCEPTANCE
from .solve import Option, Plan
from .speed import EQUAL, REPLY
from .states import about_states

_GIB = 1 << 30
_NOT_FLAGS = ("--revision",)


def verdict(plan: Plan) -> str:
    """Answer in one sentence."""
    fitted = plan.fit
    what = [
        f"KV cache in {_kv_text(fitted.kv_dtype)}",
        f"{fitted.drafts} draft{'' if fitted.drafts == 1 else 's'}" if fitted.drafts else "no drafts",
        "images" if fitted.images else "text alone",
    ]
    if plan.question.tensor_parallel > 1:
        what.append(f"{plan.question.tensor_parallel} GPUs")
    where = f"{plan.checkpoint.location} on {plan.question.card.name}"
    return f"{where}: {plan.sure}: {_load(plan)}, {', '.join(what)}."


def _load(plan: Plan) -> str:
    fitted, question = plan.fit, plan.question
    number = f"{fitted.sequences} sequence{'' if fitted.sequences == 1 else 's'}"
    if question.context is None and question.concurrency is None:
        if not fitted.fits:
            return "no sequence of any length"
        return f"contexts up to {fitted.context:,} tokens, {fitted.tokens:,} in {number} at once"
    if question.context is None and not fitted.fits:
        return f"{number} at once, of any length"
    each = " each" if fitted.sequences > 1 else ""
    return f"{number} of {question.context or fitted.context:,} tokens{each} at once"


def _kv_text(kv: str) -> str:
    return "16 bits" if kv == "auto" else kv


def answers(plan: Plan) -> Iterator[str]:
    """Say what people ask next, a sentence each."""
    low, high = plan.margin
    each = " each" if plan.fit.sequences > 1 else ""
    yield (
        f"With {plan.fit.sequences} at once there is room for {plan.option.longest:,} tokens{each}; "
        f"{low:,} if running "
        f"takes as much as was ever seen, {high:,} if it takes as little."
    )
    if not plan.option.holds:
        yield f"It lacks {size_text(plan.missing)} on the card, as expected."
        yield from _ways_out(plan)
    yield from _about_drafts(plan)
    if (states := about_states(plan.checkpoint, plan.question.memory, plan.fit)) is not None:
        yield states


def _ways_out(plan: Plan) -> Iterator[str]:
    asked = plan.question.context or 1
    ways = [
        f"{option.fit.drafts or 'no'} draft{'' if option.fit.drafts == 1 else 's'}"
        for option in plan.drafts
        if option.holds and option.fit.drafts != plan.fit.drafts
    ][:1]
    ways += [
        f"--kv {option.fit.kv_dtype}"
        for option in plan.kv_types
        if option.holds and option.fit.kv_dtype != plan.fit.kv_dtype
    ][:1]
    ways += [f"the recipe `{name}`" for name, _, tokens in _cheapest(plan) if tokens >= asked][:1]
    yield f"It would hold with {', or '.join(ways)}." if ways else "Nothing that this plans makes it hold."


def _cheapest(plan: Plan) -> list[tuple[str, int, int]]:
    return sorted(plan.recipes, key=lambda row: row[1], reverse=True)


def _about_drafts(plan: Plan) -> Iterator[str]:
    options = {option.fit.drafts: option for option in plan.drafts}
    if len(options) < 2:
        yield "The checkpoint has no MTP head, so there are no drafts to weigh."
        return
    shown = plan.fit.drafts or 2
    without, with_drafts = options[0], options[shown]
    number = plan.number
    lost = without.fit.tokens - with_drafts.fit.tokens
    states = (with_drafts.fit.layout.sequence_bytes - without.fit.layout.sequence_bytes) * number
    yield (
        f"{shown} draft{'' if shown == 1 else 's'} cost {lost:,} tokens of KV cache with {number} at once: "
        f"{size_text(without.fit.cache - with_drafts.fit.cache)} of MTP head, {size_text(states)} of states, "
        "and one more layer of keys and values."
    )
    if (
        without.round is None
        or with_drafts.round is None
        or with_drafts.speed is None
        or without.speed is None
    ):
        yield "Whether drafts pay is not said: the card's bandwidth is not known (--bandwidth)."
        return
    ratio = with_drafts.round / without.round
    reason = ""
    if with_drafts.kept < min(number, without.kept):
        reason = (
            f", as {with_drafts.kept} of {number} contexts stay cached in place of "
            f"{min(number, without.kept)} and the rest are read again"
        )
    elif with_drafts.at_once < min(number, without.at_once):
        reason = f", as {with_drafts.at_once} run at once in place of {min(number, without.at_once)}"
    if ratio > 1 + EQUAL:
        yield f"MTP is better off: derived, a round of {number} takes {ratio:.2f} times as long with it{reason}."
    elif ratio > 1 - EQUAL:
        yield f"MTP makes no difference that could be told here: derived, {ratio:.2f} of the time without it."
    else:
        yield (
            f"MTP pays: derived, a round of {number} takes {ratio:.2f} of the time without it, at "
            f"{plan.question.tokens_a_step(shown):.2f} tokens a step."
        )
    if (more := options.get(4)) and plan.fit.drafts == 3 and more.round and with_drafts.round:
        gained = 1 - more.round / with_drafts.round
        if gained > EQUAL:
            yield (
                f"Four drafts would take {gained:.0%} off that, derived; they are not chosen, as one report has a "
                "backend of attention that failed with four. Try: --drafts 4"
            )
    if plan.schedule:
        ranges = ", ".join(f"{drafts} for {range_text(first, last)}" for first, last, drafts in plan.schedule)
        where = (
            "the line has it"
            if plan.flag_schedule
            else f'not in the line: "num_speculative_tokens_per_batch_size": {schedule_text(plan)} gave wrong '
            "text in stock vLLM 0.32 on a CPU, and was not run on a GPU"
        )
        yield f"Fastest by batch size, derived: drafts, {ranges} at once; {where}."


def parts_table(plan: Plan) -> ReportTable:
    """Every byte of the card."""
    table = report_table(
        f"{plan.question.card.name}, {size_text(plan.question.memory)}"
        + (", one of the GPUs" * (plan.fit.tensor_parallel > 1)),
        "exact: headers and vLLM's arithmetic; derived: public figures; estimated: measured elsewhere.",
    )
    table.add_column("part", no_wrap=True)
    table.add_column("GiB", justify="right")
    table.add_column("margin", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("why", overflow="fold")
    for figure in plan.figures:
        table.add_row(plain(figure.part), _gib(figure.bytes), _margin(figure), figure.kind, plain(figure.why))
    return table


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f}"


def _margin(figure: Figure) -> str:
    return "" if figure.low == figure.high else f"{_gib(figure.low)}-{_gib(figure.high)}"


def drafts_table(plan: Plan) -> ReportTable:
    """The same request by number of drafts."""
    question = plan.question
    shares = ", ".join(f"{share:.0%}" for share in question.acceptance)
    usual = "as published for trained heads" if question.acceptance == ACCEPTANCE else "as given"
    table = report_table(
        f"By drafts, {plan.number} at once",
        f"Speeds and rounds (each replies once with {REPLY} tokens) are derived; accepted by position "
        f"{shares}, {usual}; made as {'the plugin does by default' if question.plugin else 'stock vLLM does'}.",
    )
    for title in ("drafts", "tokens each", "at once", "kept", "tok/s each", "tok/s all", "round, s"):
        table.add_column(title, justify="right")
    for option in plan.drafts:
        table.add_row(str(option.fit.drafts), *_row(option))
    return table


def _row(option: Option) -> list[str]:
    found = option.speed
    speeds = (
        ["", "", ""] if found is None else [f"{found.each:.0f}", f"{found.total:.0f}", f"{option.round:.0f}"]
    )
    return [f"{option.longest:,}", str(option.at_once), str(option.kept), *speeds]


def choices_table(plan: Plan) -> ReportTable:
    """The same request by KV type and by recipe."""
    table = report_table(
        f"Tokens each of {plan.number}, with other choices",
        "int4_per_token_head takes vLLM's Triton kernels of attention, which are slower.",
    )
    table.add_column("choice", no_wrap=True)
    table.add_column("tokens each", justify="right")
    for option in plan.kv_types:
        table.add_row(f"--kv {option.fit.kv_dtype}", f"{option.longest:,}")
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, size, tokens in _cheapest(plan):
        by_size.setdefault((size, tokens), []).append(name)
    for (size, tokens), names in by_size.items():
        shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        table.add_row(f"recipe {shown} ({size_text(size)})", f"{tokens:,}")
    return table


def flags(plan: Plan) -> list[tuple[str, str]]:
    """The flags of the serve line, each with its reason."""
    words = list(plan.command.arguments)[1:]
    found: list[tuple[str, str]] = []
    while words:
        name = words.pop(0)
        value = words.pop(0) if words and not words[0].startswith("--") else ""
        found.append((f"{name} {value}".strip(), _reason(plan, name)))
    return found


def _reason(plan: Plan, flag: str) -> str:
    fitted, question = plan.fit, plan.question
    block = fitted.layout.block_tokens
    reasons = {
        "--speculative-config": f"{fitted.drafts} drafts by the checkpoint's MTP head, "
        f"{question.tokens_a_step(fitted.drafts):.2f} tokens a step (derived)"
        + ("; fewer at batch sizes where they no longer pay (derived)" if plan.flag_schedule else ""),
        "--kv-cache-dtype": "half the bytes of a token in 16 bits, or fewer",
        "--gpu-memory-utilization": "the share vLLM may take; raise it only where nothing else uses the card",
        "--max-num-seqs": "so many hold their states at once; more would only be put off",
        "--max-model-len": "what one request can have; vLLM refuses to start if it does not fit",
        "--max-num-batched-tokens": f"prompt tokens a step: activations grow with it, and with prefix caching vLLM "
        f"wants at least a block, {block:,} tokens",
        "--mamba-ssm-cache-dtype": "the dtype of states, in place of the one in config.json",
        "--limit-mm-per-prompt": "4 images a request" if fitted.images else "no vision tower is loaded",
        "--reasoning-parser": "the chat template marks thoughts; without it they stand in the reply",
        "--enable-auto-tool-choice": "the chat template calls tools",
        "--tool-call-parser": "the form in which that template writes calls",
        "--tensor-parallel-size": f"{fitted.tensor_parallel} GPUs share weights, heads and cache",
        "--revision": "of the repository on the hub",
    }
    return reasons.get(flag, f"of the profile of {question.card.name}")


def as_json(plan: Plan) -> dict[str, Any]:
    """For programs."""
    question, fitted = plan.question, plan.fit
    low, high = plan.margin
    return {
        "checkpoint": plan.checkpoint.location,
        "verdict": plan.sure,
        "card": {
            "name": question.card.name,
            "memory_bytes": question.memory,
            "bandwidth": question.card.bandwidth or None,
            "source": question.card.source,
        },
        "asked": {
            "context": question.context,
            "concurrency": question.concurrency,
            "drafts": question.drafts,
            "kv": question.kv,
            "images": question.images,
            "tensor_parallel": question.tensor_parallel,
            "utilization": question.utilization,
            "acceptance": list(question.acceptance),
        },
        "solved": list(plan.solved),
        "context": question.context or fitted.context,
        "concurrency": fitted.sequences,
        "drafts": fitted.drafts,
        "kv": fitted.kv_dtype,
        "images": fitted.images,
        "tokens_each": {"value": plan.option.longest, "low": low, "high": high, "kind": "estimated"},
        "missing_bytes": plan.missing,
        "parts": [asdict(figure) for figure in plan.figures],
        "by_drafts": [_option_json(option) for option in plan.drafts],
        "by_kv": [_option_json(option) for option in plan.kv_types],
        "by_recipe": [
            {"recipe": name, "loaded_bytes": size, "tokens_each": tokens}
            for name, size, tokens in plan.recipes
        ],
        "flags": [{"flag": flag, "reason": reason} for flag, reason in flags(plan)],
        "answers": [verdict(plan), *answers(plan)],
        "drafts_by_batch": [list(entry) for entry in plan.schedule],
    }


def _option_json(option: Option) -> dict[str, Any]:
    found = option.speed
    return {
        "drafts": option.fit.drafts,
        "kv": option.fit.kv_dtype,
        "holds": option.holds,
        "tokens_each": option.longest,
        "at_once": option.at_once,
        "kept": option.kept,
        "derived": None
        if found is None
        else {
            "tokens_a_second_each": round(found.each, 1),
            "tokens_a_second": round(found.total, 1),
            "round_seconds": None if option.round is None else round(option.round, 1),
        },
    }


def schedule_text(plan: Plan) -> str:
    """The schedule of drafts as vLLM takes it in ``--speculative-config``."""
    return json.dumps([list(entry) for entry in plan.schedule])
