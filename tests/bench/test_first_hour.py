"""The recorded first hour is of the commands that the script types, and has no stumble in it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[2] / "bench" / "first_hour"
TYPED = tomllib.loads((HERE / "commands.toml").read_text(encoding="utf-8"))
RECORDED: dict[str, Any] = json.loads((HERE / "transcript.json").read_text(encoding="utf-8"))


def test_each_command_was_watched_as_it_should_be() -> None:
    steps = [(step["command"], step["watched"]) for step in RECORDED["hour"]]
    expected = [(command, who) for command, watched in TYPED["hour"] for who in watched.split()]
    assert steps[: len(expected)] == expected
    (serve, curl, *doctor) = steps[len(expected) :]
    assert " vllm serve mine " in serve[0]
    assert curl[0].startswith("curl http://localhost:8000/v1/")
    assert doctor == [(command, who) for command, watched in TYPED["served"] for who in watched.split()]
    assert [step["command"] for step in RECORDED["mistakes"]] == TYPED["mistakes"]


@pytest.mark.parametrize(
    "step", RECORDED["hour"], ids=lambda step: f"{step['command'][:40]} {step['watched']}"
)
def test_nothing_on_the_way_fails(step: dict[str, Any]) -> None:
    assert step["code"] == 0
    assert "Traceback (most recent call last):" not in step["lines"]


@pytest.mark.parametrize("step", RECORDED["mistakes"], ids=lambda step: step["command"])
def test_a_mistake_is_one_error_with_help(step: dict[str, Any]) -> None:
    assert step["code"] == 2
    first, second = step["lines"]
    assert first.startswith("Error: ")
    assert second.startswith("help: ")


def test_commands_to_copy_are_not_folded_in_a_pipe() -> None:
    piped = [line for step in RECORDED["hour"] if step["watched"] == "pipe" for line in step["lines"]]
    serving = [line for line in piped if " vllm serve " in f" {line}" and "--speculative-config" in line]
    assert len(serving) >= 3
    assert all(line.count("'") % 2 == 0 for line in serving)
