"""What commands print on a terminal, off one, in a pipe, in colour, and as JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

import gptq_hybrid.cli
from gptq_hybrid.checkpoint import INDEX_NAME
from gptq_hybrid.cli import build_app
from gptq_hybrid.cli.help_page import commands, whole_command
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check_rules
from tests.command_line import Run, in_process
from tests.corpus import Workshop
from tests.losses.made import records

QWEN36 = str(Path(sys.executable).with_name("qwen36"))
SCHEMA = json.loads((Path(gptq_hybrid.cli.__file__).parent / "schema.json").read_text(encoding="utf-8"))
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Exit code, stdout and stderr of the command in this process, whose stdout is no terminal."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return in_process(monkeypatch, capfd)


def on_terminal(*arguments: str | Path, columns: int, **environment: str) -> list[str]:
    """The lines that a terminal of so many columns is sent, before it breaks them itself."""
    leader, follower = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [QWEN36, *map(str, arguments)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**clean, "COLUMNS": str(columns), "TERM": "xterm", **environment},
        close_fds=True,
    )
    os.close(follower)
    pieces = []
    while True:
        try:
            piece = os.read(leader, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(leader)
    process.wait(timeout=120)
    return b"".join(pieces).decode().replace("\r\n", "\n").splitlines()


@pytest.fixture
def faulty(build: Callable[..., DemoCheckpoint], tmp_path: Path) -> Path:
    shop = Workshop(build(mtp="separate").path, tmp_path / "case")
    shop.delete("tokenizer.json")
    shop.json(INDEX_NAME, lambda i: i["metadata"].update(total_size=1))
    return shop.folder


def validated(text: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    return content


class TestPipes:
    def test_the_first_line_is_the_verdict(self, faulty: Path) -> None:
        """`| head -1` shows it, and a closed pipe is no reason for a traceback."""
        command = f"{QWEN36} check {faulty} | head -1"
        ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=120)
        assert ended.stdout.startswith(f"{faulty}: will not serve")
        assert ended.stderr == ""

    def test_a_reader_that_leaves_early_sees_no_traceback(self) -> None:
        command = f"{QWEN36} check --rules | true"
        ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=120)
        assert ended.stderr == ""

    def test_nothing_is_folded(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        lines = run("check", "--rules")[1].splitlines()
        for rule in check_rules():
            assert any(line.startswith(rule.id) and rule.explanation in line for line in lines), rule.id

    def test_help_is_copied_whole(self, run: Run, faulty: Path) -> None:
        lines = run("check", faulty)[1].splitlines()
        assert lines[-1] == f"  qwen36 check {faulty}"
        assert f"  help: Rebuild the index from the files: qwen36 repair {faulty}" in lines


class TestTerminals:
    @pytest.mark.parametrize("columns", [40, 80])
    def test_findings_are_wrapped_by_the_terminal_alone(self, faulty: Path, columns: int) -> None:
        lines = on_terminal("check", faulty, columns=columns, NO_COLOR="1")
        assert lines[-1] == f"  qwen36 check {faulty}"

    def test_no_number_is_split_at_80_columns(self, tmp_path: Path) -> None:
        from gptq_hybrid.losses import write_log

        write_log(tmp_path / "quant_log.csv", list(records().values()))
        wide = on_terminal("losses", tmp_path, columns=200, NO_COLOR="1")
        narrow = on_terminal("losses", tmp_path, columns=80, NO_COLOR="1")
        assert max(map(len, narrow)) <= 110
        figures = [re.findall(r"\d[\d.,]*(?:e[-+]\d+)?", "\n".join(lines)) for lines in (wide, narrow)]
        assert len(figures[0]) > 20
        assert figures[0] == figures[1]
        assert "…" not in "\n".join(narrow)

    def test_colours_are_for_terminals(self, faulty: Path) -> None:
        assert any(map(ANSI.search, on_terminal("check", faulty, columns=80)))
        assert not any(map(ANSI.search, on_terminal("check", faulty, columns=80, NO_COLOR="1")))
        assert not any(map(ANSI.search, on_terminal("check", faulty, "--color", "never", columns=80)))


class TestOptions:
    def test_colour_can_be_asked_for_in_a_pipe(
        self, run: Run, faulty: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        assert not ANSI.search(run("check", faulty)[1])
        colored = run("check", faulty, "--color", "always")[1]
        assert ANSI.search(colored)
        monkeypatch.setenv("NO_COLOR", "1")
        assert ANSI.search(run("check", faulty, "--color", "always")[1])
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("FORCE_COLOR", "1")
        # In colour, but still neither folded nor animated.
        assert run("check", faulty)[1] == colored

    def test_quiet_leaves_findings_and_exit_code(self, run: Run, faulty: Path) -> None:
        code, out, err = run("check", faulty, "--quiet")
        assert (code, err) == (1, "")
        assert [line.split("[")[0] for line in out.splitlines() if not line.startswith(" ")] == [
            "error",
            "warning",
        ]

    def test_every_command_has_the_shared_options(self) -> None:
        for words in commands(whole_command()):
            command = whole_command()
            for word in words:
                command = command.commands[word]
            if not hasattr(command, "commands"):
                options = {option for p in command.params for option in p.opts}
                assert {"--quiet", "-q", "--color"} <= options, words

    @pytest.mark.parametrize("words", [(), ("check",), ("tune",), ("tune", "prefill")], ids=" ".join)
    def test_h_is_help(self, words: tuple[str, ...]) -> None:
        short, full = (CliRunner().invoke(build_app(), [*words, flag]).stdout for flag in ("-h", "--help"))
        assert short == full
        assert "Usage: " in full

    @pytest.mark.parametrize(
        ("typed", "offered"), [("qwen36 che", {"check"}), ("qwen36 check --out", {"--output-format"})]
    )
    def test_a_shell_completes(self, typed: str, offered: set[str]) -> None:
        environment = {
            **os.environ,
            "_QWEN36_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - 1),
        }
        ended = subprocess.run(
            [QWEN36], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert set(ended.stdout.split()) == offered


class TestJson:
    def test_what_is_found(self, run: Run, faulty: Path, original: DemoCheckpoint) -> None:
        content = validated(run("check", faulty, original.path, "--json")[1])
        assert content["result"]["verdict"] == "faulty"
        assert content["format"] is None
        rules = validated(run("check", "--rules", "--json")[1])["result"]["rules"]
        assert len(rules) == len(check_rules())

    def test_what_a_repair_would_do(self, run: Run, faulty: Path) -> None:
        code, out, _ = run("repair", faulty, "--dry-run", "--json")
        result = validated(out)["result"]
        assert code == 1
        assert result["dry_run"]
        assert [finding["rule"] for finding in result["left"]] == ["tokenizer-missing"]

    def test_a_preflight(self, run: Run, original: DemoCheckpoint, tmp_path: Path) -> None:
        target = tmp_path / "out"
        code, out, _ = run("quantize", original.path, target, "--calibration", "demo", "--dry-run", "--json")
        result = validated(out)["result"]
        assert code == 0
        assert result["seconds"] > 0
        assert result["bytes"] > 1 << 20
        assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]

    def test_losses(self, run: Run, tmp_path: Path) -> None:
        from gptq_hybrid.losses import write_log

        write_log(tmp_path / "quant_log.csv", list(records().values()))
        assert validated(run("losses", tmp_path, "--json")[1])["command"] == "losses"

    def test_an_error_is_an_envelope_too(self, run: Run) -> None:
        code, out, err = run("losses", "nowhere", "--json")
        content = validated(out)
        assert code == 2
        assert content["result"] is None
        assert content["error"]["message"] in " ".join(err.split())

    def test_a_schema_that_lacks_a_field_is_seen(self, run: Run, faulty: Path) -> None:
        content = json.loads(run("check", faulty, "--json")[1])
        del content["result"]["checkpoints"][0]["findings"]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(SCHEMA).validate(content)


def test_what_arguments_tell_is_refused_before_torch_is_imported(
    original: DemoCheckpoint, separate: Path, tmp_path: Path
) -> None:
    """In one process: torch, once imported, stays."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "file").write_text("")
    source, quantized = str(original.path), str(separate)
    (folder / "rows.jsonl").write_text('{"text": "A row."}\n')
    (folder / "bad.jsonl").write_text('{"text": "A row."}\n{\n')
    cases = [
        ["quantize", source, "out", "--calibration", "missing.jsonl"],
        ["quantize", source, "out", "--calibration", "bad.jsonl"],
        ["quantize", source, "file/out", "--calibration", "demo"],
        ["quantize", source, "out", "--recipe", "nobody"],
        ["quantize", source, "out", "--calibration", "demo", "--exclude", "missing.jsonl"],
        ["demo", "--recipe", "nobody"],
        ["demo", "--keep", "file/x"],
        ["eval", source, quantized, "--data", "missing.jsonl"],
        ["eval", source, "nowhere", "--data", "rows.jsonl"],
        ["eval", source, quantized, "--data", "rows.jsonl", "--out", "file/x"],
        ["eval", source, quantized, "--data", "rows.jsonl", "--dtype", "int8"],
        ["sensitivity", source, "--data", "missing.jsonl"],
        ["sensitivity", source, "--data", "rows.jsonl", "--out", "file/x"],
        ["sensitivity", source, "--data", "rows.jsonl", "--recipe-out", "absent/r.toml", "--budget", "3%"],
        ["draft-vocab", quantized, "--data", "missing.jsonl"],
        ["draft-vocab", quantized, "--data", "rows.jsonl", "--out", "absent/x.json"],
        ["losses", "nowhere"],
        ["losses", quantized, "--plot", "absent/losses.png"],
        ["tune", "drafts", quantized, "missing.jsonl"],
    ]
    script = (
        "import json, sys\n"
        "from gptq_hybrid.cli import main\n"
        "for case in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['qwen36', *case]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 2, (case, ended.code)\n"
        "    else:\n"
        "        raise AssertionError(case)\n"
        "    assert not {'torch', 'transformers'} & set(sys.modules), case\n"
    )
    command = [sys.executable, "-c", script, json.dumps(cases)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stderr.count("Error: ") == len(cases)
    assert sorted(path.name for path in folder.iterdir()) == ["bad.jsonl", "file", "rows.jsonl"]


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_the_way_in_is_light(words: list[str]) -> None:
    script = (
        "import sys; from gptq_hybrid.cli import main; sys.argv = ['qwen36', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'pydantic', 'numpy', 'rich', 'httpx', 'torch', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
