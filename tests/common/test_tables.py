"""Tables off a terminal: what a log or `grep` gets."""

from __future__ import annotations

import sys

import pytest

from gptq_hybrid.common.tables import report_table
from gptq_hybrid.common.terminal import out


def test_off_a_terminal_no_line_has_blanks_at_its_end_and_the_rule_is_no_longer_than_a_screen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = report_table("Replies", "all of them")
    table.add_column("prompt")
    table.add_column("tokens", justify="right")
    table.add_column("reply")
    table.add_row("first", "3", "word " * 60 + "end")
    table.add_section()
    table.add_row("second", "12", "[green]short[/]")
    assert not sys.stdout.isatty()
    out().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line.rstrip() for line in lines]
    rule = next(line for line in lines if line.startswith("─"))
    assert 10 < len(rule) <= 100
    assert lines[0] == "Replies"
    assert lines[-1] == "all of them"
    assert "second       12   short" in lines
    # Never folded: one row is one line, whatever its length.
    assert [line for line in lines if line.startswith("first")] == [
        "first         3   " + "word " * 60 + "end"
    ]


def test_colours_that_were_asked_for_are_kept_off_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    table = report_table("", "")
    table.add_column("verdict")
    table.add_row("[green]good[/]")
    out().print(table)
    assert "\x1b[32mgood\x1b[0m" in capsys.readouterr().out
