"""What the user of `vllm serve` sees of a refusal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vllm_qwen36_plugin.errors import MtpHeadError
from vllm_qwen36_plugin.start.refusal import refusal_in, refusal_text


@dataclass
class Config:
    def __post_init__(self) -> None:
        raise MtpHeadError("no head")


def validation_error() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Config).validate_python({})
    return caught.value


def test_the_refusal_is_found_inside_pydantics_error() -> None:
    assert str(refusal_in(validation_error())) == "no head"


def test_the_refusal_is_found_behind_another_error() -> None:
    outer = RuntimeError("engine failed")
    outer.__cause__ = validation_error()
    assert refusal_in(outer) is not None


def test_other_errors_are_not_ours() -> None:
    error = ValueError("x")
    error.__cause__ = error.__context__ = error
    assert refusal_in(error) is None


PROGRAM = """
import sys
from pydantic.dataclasses import dataclass
from vllm_qwen36_plugin.errors import MtpHeadError
from vllm_qwen36_plugin.start.refusal import show_refusal_alone

@dataclass
class Config:
    def __post_init__(self):
        show_refusal_alone(); show_refusal_alone()
        raise {error}

Config()
"""


def uncaught(folder: Path, program: str, error: str) -> subprocess.CompletedProcess[str]:
    script = folder / program
    script.write_text(PROGRAM.format(error=error))
    return subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)


def test_the_vllm_command_prints_the_message_alone_and_fails(tmp_path: Path) -> None:
    done = uncaught(tmp_path, "vllm", "MtpHeadError('line one\\nline two')")
    assert done.stderr == "\nvllm-qwen36-plugin: line one\nline two\n\n"
    assert done.returncode == 1


def test_the_vllm_command_keeps_the_traceback_of_other_errors(tmp_path: Path) -> None:
    assert "Traceback" in uncaught(tmp_path, "vllm", "ValueError('else')").stderr


def test_a_program_that_uses_vllm_as_a_library_keeps_its_traceback(tmp_path: Path) -> None:
    done = uncaught(tmp_path, "mine.py", "MtpHeadError('line one')")
    assert "Traceback" in done.stderr
    assert "line one" in done.stderr


def test_advice_that_several_problems_share_is_given_once_and_the_rest_is_counted() -> None:
    problems = [("a", "run x"), ("b", "run x"), ("c", ""), ("d", "run y"), *[("e", "run z")] * 3]
    assert refusal_text("no start:", problems, ["bye"]).splitlines() == [
        "no start:",
        "",
        "  * a",
        "  * b",
        "    -> run x",
        "  * c",
        "  * d",
        "    -> run y",
        "  * e",
        "    -> run z",
        "  * and 2 more",
        "",
        "bye",
    ]
