"""Task results as tables of at most 110 columns."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from gptq_hybrid.common.tables import plain, report_table

from .tasks import TaskDifference, TaskResults, TaskScore


def task_tables(results: TaskResults) -> list[RenderableType]:
    """Return value and standard error of each checkpoint by task, then paired differences.

    A group, such as MMLU, has one row; its tasks are in the JSON.
    """
    requested = set(results.settings.get("tasks", ()))
    scored = {score.task for score in results.scores}
    # A pattern or tag has no score of its own: then its tasks are shown.
    shown = requested if requested <= scored else scored
    program = f"lm-eval {results.settings.get('lm_eval')}, {results.settings.get('backend')}"
    tables: list[RenderableType] = [_value_table([s for s in results.scores if s.task in shown], program)]
    if differences := [d for d in results.differences if d.task in shown]:
        tables.append(_difference_table(differences))
    return tables


def format_p(p: float) -> str:
    """Return a p-value as text."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _value_table(scores: list[TaskScore], program: str) -> Table:
    table = report_table("Tasks", f"value ± standard error over documents; {program}")
    for header in ("task", "metric", "docs"):
        table.add_column(header, justify="right" if header == "docs" else "left", overflow="fold")
    checkpoints = list(dict.fromkeys(score.checkpoint for score in scores))
    for checkpoint in checkpoints:
        table.add_column(plain(checkpoint), justify="right", overflow="fold")
    cells: dict[tuple[str, str], dict[str, TaskScore]] = {}
    for score in scores:
        cells.setdefault((score.task, _metric(score)), {})[score.checkpoint] = score
    for (task, metric), row in cells.items():
        documents = max(score.documents for score in row.values())
        table.add_row(
            plain(task), plain(metric), f"{documents:,}", *(_value(row.get(name)) for name in checkpoints)
        )
    return table


def _difference_table(differences: list[TaskDifference]) -> Table:
    table = report_table(
        "Tasks: A minus B, on the same documents",
        "95 % interval: paired t; p: sign-flip test on the documents that differ",
    )
    for header in ("A\nB", "task\nmetric"):
        table.add_column(header, overflow="fold")
    for header in ("docs\ndiffering", "A − B\n95 % interval", "p"):
        table.add_column(header, justify="right", no_wrap=True)
    for d in differences:
        e = d.difference
        ends = "[–]" if e.low is None or e.high is None else f"[{e.low:+z.4f}, {e.high:+z.4f}]"
        row = (
            f"{d.a}\n{d.b}",
            f"{d.task}\n{_metric(d)}",
            f"{d.documents:,}\n{d.differing:,}",
            f"{e.value:+z.4f}\n{ends}",
            format_p(d.p),
        )
        table.add_row(*map(plain, row))
    return table


def _metric(row: TaskScore | TaskDifference) -> str:
    return row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"


def _value(score: TaskScore | None) -> str:
    if score is None:
        return "–"
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
