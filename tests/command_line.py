"""`qwen36` run in this process: importing takes longer than most commands do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_hybrid.cli import main

Run = Callable[..., tuple[int, str, str]]


def in_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *command: str | Path
) -> Run:
    """A function of more arguments that gives exit code, stdout and stderr; neither is a terminal."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qwen36", *map(str, command + arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capfd.readouterr()

    return run
