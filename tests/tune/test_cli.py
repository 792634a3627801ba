"""``qwen36 tune`` itself: what it says where neither of its commands is named."""

from __future__ import annotations

import sys

import pytest

from gptq_hybrid.cli import main


def ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """Exit code of the command, and all that it printed."""
    monkeypatch.setattr(sys, "argv", ["qwen36", "tune", *arguments])
    with pytest.raises(SystemExit) as exited:
        main()
    return int(exited.value.code or 0), " ".join("".join(capfd.readouterr()).split())


def test_alone_it_prints_its_help(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    _, text = ended(monkeypatch, capfd)
    assert text.startswith("Usage: qwen36 tune ")
    assert "prefill Time the linears" in text
    assert "drafts Find how many MTP drafts" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("Qwen/Qwen3.6-27B",),
        ("--out", "p.json"),
        ("--drafts", "prompts.jsonl"),
        ("./model", "--drafts", "prompts.jsonl"),
    ],
)
def test_a_word_that_is_no_command_gets_one_error_that_names_both_commands(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, text = ended(monkeypatch, capfd, *arguments)
    assert code == 2
    assert text.startswith(f"Error: qwen36 tune has no command '{arguments[0]}'")
    assert "qwen36 tune prefill [MODEL]" in text
    assert "qwen36 tune drafts MODEL PROMPTS.jsonl" in text


def test_an_option_that_a_command_does_not_have_is_that_commands_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, text = ended(monkeypatch, capfd, "prefill", "--numbers", "1,2")
    assert code == 2
    assert "No such option: --numbers" in text
