"""Tables of findings and rules for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gptq_hybrid.common.tables import plain
from gptq_hybrid.doctor import Finding, Rule, Severity

_COLOUR = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


def findings_table(findings: Iterable[Finding]) -> Table:
    """Return a table with one row a finding: severity, rule, then what is wrong and what to do."""
    table = Table(box=SIMPLE_HEAD, show_header=True, pad_edge=False, expand=False)
    table.add_column("severity", no_wrap=True)
    table.add_column("rule", no_wrap=True)
    table.add_column("what is wrong, and what to do", overflow="fold")
    for finding in findings:
        table.add_row(
            f"[{_COLOUR[finding.severity]}]{finding.severity}[/]",
            finding.rule,
            f"{plain(finding.message)}\n→ {plain(finding.remedy)}",
        )
    return table


def rules_table(rules: Iterable[Rule]) -> Table:
    """Return a table with one row a rule: id, severity, and why it is there."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("rule", "severity", "why"):
        table.add_column(column, no_wrap=column != "why", overflow="fold")
    for rule in rules:
        table.add_row(rule.id, f"[{_COLOUR[rule.severity]}]{rule.severity}[/]", plain(rule.explanation))
    return table
