"""Task results as tables of at most 110 columns."""

from __future__ import annotations

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from gptq_hybrid.common.tables import report_table

from .tasks import TaskDifference, TaskResults, TaskScore


def task_tables(results: TaskResults) -> list[RenderableType]:
    """Value and standard error of each checkpoint by task, then paired differences.

    Of a group, such as MMLU, the group alone: its tasks are in the JSON.
    """
    asked = set(results.settings.get("tasks", ()))
    known = {score.task for score in results.scores}
    # A pattern or tag stands for its tasks, which then are what was asked for.
    shown = asked if asked <= known else known
    by = f"lm-eval {results.settings.get('lm_eval')}, {results.settings.get('backend')}"
    found: list[RenderableType] = [_values([s for s in results.scores if s.task in shown], by)]
    if differences := [d for d in results.differences if d.task in shown]:
        found.append(_differences(differences))
    return found


def _values(scores: list[TaskScore], by: str) -> Table:
    table = report_table("Tasks", f"value ± standard error over documents; {by}")
    for header in ("task", "metric", "docs"):
        table.add_column(header, justify="right" if header == "docs" else "left", overflow="fold")
    checkpoints = list(dict.fromkeys(score.checkpoint for score in scores))
    for checkpoint in checkpoints:
        table.add_column(escape(checkpoint), justify="right", overflow="fold")
    cells: dict[tuple[str, str], dict[str, TaskScore]] = {}
    for score in scores:
        cells.setdefault((score.task, _metric(score)), {})[score.checkpoint] = score
    for (task, metric), found in cells.items():
        documents = max(score.documents for score in found.values())
        table.add_row(
            escape(task), escape(metric), f"{documents:,}", *(_value(found.get(name)) for name in checkpoints)
        )
    return table


def _differences(differences: list[TaskDifference]) -> Table:
    table = report_table(
        "Tasks: A less B, on the same documents",
        "95 % interval: paired t; p: sign-flip test on the documents that differ",
    )
    for header in ("A\nB", "task\nmetric"):
        table.add_column(header, overflow="fold")
    for header in ("docs\ndiffering", "A − B\n95 % interval", "p"):
        table.add_column(header, justify="right", no_wrap=True)
    for d in differences:
        e = d.difference
        ends = "[–]" if e.low is None or e.high is None else f"[{e.low:+z.4f}, {e.high:+z.4f}]"
        p = "<0.001" if d.p < 0.001 else f"{d.p:.3f}"
        row = (
            f"{d.a}\n{d.b}",
            f"{d.task}\n{_metric(d)}",
            f"{d.documents:,}\n{d.differing:,}",
            f"{e.value:+z.4f}\n{ends}",
            p,
        )
        table.add_row(*map(escape, row))
    return table


def _metric(found: TaskScore | TaskDifference) -> str:
    return found.metric if found.filter == "none" else f"{found.metric} ({found.filter})"


def _value(score: TaskScore | None) -> str:
    if score is None:
        return "–"
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
