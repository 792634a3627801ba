"""A receipt as a section of a model card."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gptq_hybrid.common.text import printable

from .record import Receipt
from .summary import (
    Estimate,
    acceptance_by_position,
    acceptance_length,
    median,
    over_repeats,
)
from .table import domain_name, summary, with_interval

_GIB = 1 << 30


def cell_text(value: Any) -> str:
    """Make a value safe inside a table of Markdown."""
    return printable(str(value), lines=False).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: int = 0) -> list[str]:
    """Return the lines of a table; all columns but the first ``numbers`` are aligned to the right."""
    rule = ["---" if at < numbers else "---:" for at in range(len(head))]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|"]
    return [*lines, *(f"| {' | '.join(map(cell_text, row))} |" for row in rows)]


def speed_section(receipt: Receipt, *, level: int = 2) -> str:
    """Return the section: sentences, figures by cell with intervals, conditions and warnings."""
    mark = "#" * level
    lines = [f"{mark} Speed", "", " ".join(summary(receipt)), ""]
    rows = [
        (
            domain_name(m.cell.domain) + (", warm cache" if m.cell.cache == "warm" else ""),
            m.cell.context,
            m.cell.batch,
            with_interval(median(m.repeats, lambda r: r.ttft_ms)),
            with_interval(median(m.repeats, lambda r: r.tpot_ms)),
            with_interval(over_repeats([r.throughput for r in m.repeats])),
            with_interval(acceptance_length(m.repeats)),
            " / ".join(f"{100 * share:.0f}" for share in acceptance_by_position(m.repeats)) or "–",
        )
        for m in receipt.cells.values()
        if m.repeats
    ]
    head = ("prompts", "context", "batch", "TTFT, ms", "TPOT, ms", "tokens/s", "tokens a step", "accepted, %")
    lines += table(head, rows, numbers=1)
    lines += [
        "",
        "TTFT and TPOT are medians over requests, tokens/s are of all requests together, accepted is by position "
        "in the draft. In brackets: 95 % intervals, by bootstrap over requests and repeats.",
        "",
        *conditions(receipt),
    ]
    if receipt.warnings:
        lines += ["", "What to know before quoting these figures:", ""]
        lines += [f"* {printable(warning['message'], lines=False)}." for warning in receipt.warnings]
    return "\n".join(lines)


def conditions(receipt: Receipt) -> list[str]:
    """Return the lines of a table of what it was measured with."""
    server, machine, subject, plan = receipt.server, receipt.machine, receipt.subject, receipt.plan
    versions: Mapping[str, str] = machine.get("versions") or {}
    rows: list[tuple[str, Any]] = [("measured", receipt.made)]
    for gpu in machine.get("gpus") or []:
        rows.append(("GPU", f"{gpu['name']}, {gpu['memory_gib']} GiB, driver {gpu['driver']}"))
    if clocks := _clocks(receipt):
        rows.append(("clocks", clocks))
    if machine.get("cpu"):
        rows.append(("CPU", machine["cpu"]))
    rows.append(("vLLM", server["vllm"]))
    rows.append(("vllm-qwen36-plugin", server["plugin"] or "none"))
    rows += [(name, versions[name]) for name in ("torch", "triton", "transformers") if name in versions]
    if server["arguments"]:
        variables = [f"{k}={shlex.quote(v)}" for k, v in server["environment"].items()]
        rows.append(
            ("command", f"`{' '.join([*variables, shlex.join(['vllm', 'serve', *server['arguments']])])}`")
        )
    if server["kv_cache_tokens"]:
        dtype = f" ({server['kv_cache_dtype']})" if server["kv_cache_dtype"] else ""
        rows.append(("KV cache", f"{server['kv_cache_tokens']:,} tokens{dtype}"))
    if subject.get("disk_bytes"):
        rows.append(("weights on disk", f"{subject['disk_bytes'] / _GIB:.2f} GiB"))
    rows.append(("checkpoint", f"sha256 {subject['digest'][:16]}" if subject["digest"] else "not seen"))
    rows.append(("prompts", plan.workload))
    sampling = "greedy" if plan.temperature == 0 else f"temperature {plan.temperature:g}"
    rows.append(("answers", f"at most {plan.max_tokens} tokens, {sampling}, {plan.repeats} repeats"))
    return table(("measured with", ""), rows, numbers=2)


def _clocks(receipt: Receipt) -> str:
    looks = [gpu for m in receipt.cells.values() for repeat in m.repeats for gpu in repeat.gpu]
    seen = [gpu["sm_mhz"] for gpu in looks if "sm_mhz" in gpu]
    if not seen:
        return ""
    most = max((gpu["most_sm_mhz"] for gpu in looks if "most_sm_mhz" in gpu), default=None)
    limit = max((gpu["power_limit_w"] for gpu in looks if "power_limit_w" in gpu), default=None)
    text = f"SM {min(seen):,.0f} to {max(seen):,.0f} MHz under load"
    text += f", at most {most:,.0f}" if most else ""
    return text + (f"; power limit {limit:,.0f} W" if limit else "")


def quality_section(quality: Mapping[str, Any], *, level: int = 2) -> str:
    """Return the section of what ``qwen36 eval`` found."""
    mark = "#" * level
    lines = [f"{mark} Quality", ""]
    if quality["overall"] is not None:
        lines += [f"Compared with {printable(quality['reference'], lines=False)}, by `qwen36 eval`:", ""]
        rows = [_quality_row("all", quality["overall"])]
        rows += [_quality_row(name, figures) for name, figures in quality["domains"].items()]
        head = (
            "domain",
            "KLD, nats a token",
            "same top token, %",
            "perplexity ratio",
            "tokens a step",
            "documents",
        )
        lines += [
            *table(head, rows, numbers=1),
            "",
            "In brackets: 95 % intervals, by bootstrap over documents.",
            "",
        ]
    if quality["tasks"]:
        rows_ = [
            (
                task["task"],
                f"{task['metric']} ({task['filter']})",
                f"{task['value']:.4f}" + (f" ± {task['stderr']:.4f}" if task["stderr"] is not None else ""),
                task["documents"],
            )
            for task in quality["tasks"]
        ]
        lines += [*table(("task", "metric", "value ± standard error", "documents"), rows_, numbers=2), ""]
    return "\n".join(lines).rstrip()


def _quality_row(name: str, figures: Mapping[str, Any]) -> tuple[Any, ...]:
    top1 = {k: None if v is None else 100 * v for k, v in figures["top1"].items()}
    length = figures.get("acceptance_length")
    return (
        name,
        _quality(figures["kld_mean"], 4),
        _quality(top1, 2),
        _quality(figures["perplexity_ratio"], 4),
        "–" if length is None else _quality(length, 2),
        figures["documents"],
    )


def _quality(estimate: Mapping[str, float | None], digits: int) -> str:
    found = Estimate(float(estimate["value"] or 0.0), estimate["low"], estimate["high"])
    if found.low is None or found.high is None:
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
