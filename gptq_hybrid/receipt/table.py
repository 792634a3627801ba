"""A receipt and a comparison for a terminal: sentences and tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from gptq_hybrid.common.tables import plain, report_table

from .compare import Comparison, Row, Verdict, verdict, worst
from .plan import ALL
from .record import Measured, Receipt
from .summary import Estimate, acceptance_by_position, acceptance_length, median, over_repeats

_STYLES = {"equal": "green", "different": "red", "undecided": "yellow"}
_WORDS = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per token",
    "tokens_per_second": "tokens a second",
    "acceptance_length": "tokens a step",
}


def figure(value: float) -> str:
    """Write a figure with the digits that matter: three before a hundred, none after."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def with_interval(estimate: Estimate | None) -> str:
    """Write a figure and its interval."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return figure(estimate.value)
    return f"{figure(estimate.value)} [{figure(estimate.low)}, {figure(estimate.high)}]"


def _positions(measured: Measured) -> str:
    return " ".join(f"{100 * share:.0f}" for share in acceptance_by_position(measured.repeats)) or "–"


def cells_table(receipt: Receipt, *, wide: bool = False) -> Table:
    """Make the table of all cells; ``wide`` adds the intervals."""
    table = report_table(
        f"{receipt.subject['name']}: {receipt.plan.repeats} repeats, answers of at most "
        f"{receipt.plan.max_tokens} tokens",
        "TTFT, TPOT: ms, medians over requests; tokens/s: all requests together; length: tokens a step; "
        "accepted: by position, %" + ("; in brackets: 95 % intervals" if wide else ""),
        padding=(0, 1),
    )
    table.add_column("prompts", no_wrap=True)
    table.add_column("context", justify="right")
    for name in ("batch", "TTFT", "TPOT", "tokens/s", "length"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("accepted", no_wrap=True)
    show = with_interval if wide else lambda e: "–" if e is None else figure(e.value)
    for measured in receipt.cells.values():
        if not measured.repeats:
            continue
        cell, repeats = measured.cell, measured.repeats
        table.add_row(
            plain(cell.domain) + (" (warm)" if cell.cache == "warm" else ""),
            cell.context,
            str(cell.batch),
            show(median(repeats, lambda r: r.ttft_ms)),
            show(median(repeats, lambda r: r.tpot_ms)),
            show(over_repeats([r.throughput for r in repeats])),
            show(acceptance_length(repeats)),
            _positions(measured),
        )
    return table


def summary(receipt: Receipt) -> list[str]:
    """Say in sentences what was measured, where, and what matters most."""
    server, machine = receipt.server, receipt.machine
    gpus = ", ".join(gpu["name"] for gpu in machine.get("gpus") or [])
    place = gpus or machine.get("cpu") or "a machine elsewhere"
    plugin = f"with vllm-qwen36-plugin {server['plugin']}" if server["plugin"] else "without the plugin"
    lines = [f"{receipt.subject['name']} on {place}, vLLM {server['vllm']} {plugin}."]
    alone = [m for m in receipt.cells.values() if m.cell.batch == 1 and m.cell.cache == "cold" and m.repeats]
    if alone:
        context = alone[0].cell.context
        repeats = [repeat for m in alone if m.cell.context == context for repeat in m.repeats]
        tpot, ttft = median(repeats, lambda r: r.tpot_ms), median(repeats, lambda r: r.ttft_ms)
        length = acceptance_length(repeats)
        said = f"One request at a time ({context} context): first token after {with_interval(ttft)} ms"
        if tpot is not None:
            said += f", then {figure(1e3 / tpot.value)} tokens a second ({with_interval(tpot)} ms each)"
        lines.append(said + (f"; {with_interval(length)} tokens a step." if length else "; no drafts."))
    most = max((m.cell.batch for m in receipt.cells.values() if m.repeats), default=1)
    crowd = [
        m for m in receipt.cells.values() if m.cell.batch == most and m.cell.cache == "cold" and m.repeats
    ]
    if most > 1 and crowd:
        rate = over_repeats([repeat.throughput for repeat in crowd[0].repeats])
        ttft = median(crowd[0].repeats, lambda r: r.ttft_ms)
        lines.append(
            f"{most} at a time ({crowd[0].cell.context} context): {with_interval(rate)} tokens a second together, "
            f"first token after {with_interval(ttft)} ms."
        )
    return lines


def ratios_table(comparison: Comparison, names: Sequence[str], tolerance: float | None = None) -> Table:
    """Make the table of ratios; with a tolerance each is coloured by its verdict."""
    told = "" if tolerance is None else f"; green: within {tolerance:.0%} of 1, red: not 1, yellow: undecided"
    table = report_table(
        f"{names[1]} over {names[0]}: ratios, below 1 is less",
        f"in brackets: 95 % intervals, by bootstrap over requests and repeats{told}",
    )
    table.add_column("context", justify="right")
    table.add_column("batch", justify="right")
    for name in ("TTFT", "TPOT", "tokens/s", "length"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        cells = [_ratio(row, name, tolerance) for name in _WORDS]
        context = row.context + (" (warm)" if row.cache == "warm" else "")
        table.add_row(context, str(row.batch), *cells)
    return table


def _ratio(row: Row, name: str, tolerance: float | None) -> Text:
    estimate = row.ratios.get(name)
    if estimate is None:
        return Text("–")
    text = f"{estimate.value:.3f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return Text(text, style="" if tolerance is None else _STYLES[verdict(estimate, tolerance)])


def verdicts(comparison: Comparison, tolerance: float) -> tuple[Verdict, list[str]]:
    """Judge a verification: the verdict on all figures, and sentences."""
    found = [
        (row, name, estimate, verdict(estimate, tolerance))
        for row in comparison.rows
        for name, estimate in row.ratios.items()
    ]
    overall = worst([each for *_, each in found])
    count = {kind: sum(each == kind for *_, each in found) for kind in _STYLES}
    first = {
        "equal": f"Equal: all {len(found)} figures are within {tolerance:.0%}.",
        "different": f"Not equal: {count['different']} of {len(found)} figures differ.",
        "undecided": f"Not decided: the intervals of {count['undecided']} of {len(found)} figures are too wide to "
        f"say that they are within {tolerance:.0%}; none differs for certain.",
    }[overall]
    lines = [first]
    wrong = [entry for entry in found if entry[3] == overall != "equal"]
    for row, name, estimate, _ in wrong[:3]:
        lines.append(
            f"{_WORDS[name].capitalize()}, {row.context} context, batch {row.batch}"
            f"{', warm' if row.cache == 'warm' else ''}: {with_interval(estimate)} times the other's."
        )
    return overall, lines


def domain_name(domain: str) -> str:
    """Name the prompts of a cell in words."""
    return "all domains" if domain == ALL else domain
