"""Findings and rules as text: each a line, and the command that helps on the next."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from gptq_hybrid.common.tables import plain, report_table
from gptq_hybrid.common.terminal import Screen
from gptq_hybrid.common.text import printable
from gptq_hybrid.doctor import Finding, Rule, Severity

_COLOUR = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow"}


def place(path: str, finding: Finding) -> str:
    """Where a finding is: the file in the checkpoint at ``path``, or the checkpoint itself."""
    return path if finding.file is None else f"{path.rstrip('/')}/{finding.file}"


def print_findings(screen: Screen, path: str, findings: Iterable[Finding]) -> None:
    """Print ``error[rule] file: message`` and below it ``help: what to do`` for each finding."""
    for finding in findings:
        where = place(path, finding)
        head = f"[{_COLOUR[finding.severity]}]{finding.severity}[/]\\[{finding.rule}]"
        screen.print(
            f"{head} {_line(where)}: {_line(_message(where, finding))}\n"
            f"  [bold]help:[/] {_line(finding.remedy)}",
            soft_wrap=True,
        )


def _line(text: str) -> str:
    """Text that cannot pretend to be a line of its own."""
    return plain(printable(text, lines=False))


def _message(where: str, finding: Finding) -> str:
    """The message without the name of its file at the start, which stands before it already."""
    for start in (f"{where}: ", f"{finding.file}: ", f"{finding.file} "):
        if finding.message.startswith(start):
            return finding.message.removeprefix(start)
    return finding.message


def rules_table(rules: Iterable[Rule]) -> Table:
    """Return a table with one row a rule: id, severity, and why it is there."""
    table = report_table("", "")
    for column in ("rule", "severity", "why"):
        table.add_column(column, no_wrap=column != "why", overflow="fold")
    for rule in rules:
        table.add_row(rule.id, f"[{_COLOUR[rule.severity]}]{rule.severity}[/]", plain(rule.explanation))
    return table
