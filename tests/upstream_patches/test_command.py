"""``python -m tests.upstream_patches``: the diff to send, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .__main__ import main
from .proposals import all_proposals, count_lines


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["upstream_patches", *arguments])
    return main()


def test_a_program_is_sent_as_the_diff_it_makes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--diff", "register-kernel-first") == 0
    diff = capsys.readouterr().out
    assert diff.startswith("--- a/vllm/model_executor/kernels/linear/__init__.py\n+++ b/vllm/")
    assert "+    first: bool = False," in diff
    added, removed = count_lines(diff)
    assert added >= 19
    assert removed >= 21


def test_a_program_says_that_it_does_not_know_a_source(tmp_path: Path) -> None:
    (proposal,) = (p for p in all_proposals() if p.name == "register-kernel-first")
    file = tmp_path / proposal.files[0]
    file.parent.mkdir(parents=True)
    file.write_text("def another() -> None:\n    pass\n")
    with pytest.raises(ValueError, match=r"edit\.py does not know this source"):
        proposal.diff(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-patch"], "no proposal no-such-patch; there are: compile-key-num-drafts"),
        (["--source", "vllm=/nowhere"], "expected PACKAGE=FOLDER"),
        (["--source", "torch=."], "expected PACKAGE=FOLDER"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_runs(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
