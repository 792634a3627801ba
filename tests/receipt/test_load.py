"""``vllm bench serve``: its arguments, what it saved (recorded with three versions), and its process."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from gptq_hybrid.receipt import load
from gptq_hybrid.receipt.load import (
    Burst,
    LoadError,
    Target,
    bench_arguments,
    read_answers,
    vllm_bench,
)

RECORDED = Path(__file__).parent / "recorded"
VERSIONS = ("0.26.0", "0.32.0", "0.33.0")
TARGET = Target("http://127.0.0.1:1", "made", "folder")


def recorded(version: str, name: str) -> dict[str, object]:
    value: dict[str, object] = json.loads((RECORDED / f"vllm-{version}-{name}.json").read_text())
    return value


@pytest.mark.parametrize("version", VERSIONS)
def test_times_are_milliseconds_of_each_request_in_order(version: str) -> None:
    saved = recorded(version, "real")
    answers = read_answers(saved)
    assert answers.prompt_tokens == (5, 12, 4)
    assert answers.output_tokens == (8, 8, 8)
    assert answers.ttft == tuple(round(1e3 * seconds, 3) for seconds in saved["ttfts"])  # type: ignore[attr-defined]
    # Seven tokens after the first, in the parts of the stream that came after the first.
    assert answers.tpot[0] == pytest.approx(sum(answers.itl[0]) / 7, abs=1e-3)
    assert answers.seconds > 0


@pytest.mark.parametrize("version", VERSIONS)
def test_the_time_per_token_is_the_one_that_vllm_computes(version: str) -> None:
    saved = recorded(version, "random")
    times = [value for value in read_answers(saved).tpot if value is not None]
    assert sum(times) / len(times) == pytest.approx(saved["mean_tpot_ms"], abs=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_refused_request_is_an_error(version: str) -> None:
    with pytest.raises(LoadError, match="2 of 2 requests failed: Internal Server Error"):
        read_answers(recorded(version, "refused"))


def test_a_short_answer_has_no_time_per_token() -> None:
    saved = recorded("0.33.0", "real")
    saved["output_lens"] = [7, 8, 0]
    first, second, third = read_answers(saved).tpot
    assert (first, third) == (None, None)
    assert second is not None


def test_prompts_are_sent_as_they_are_and_in_order(tmp_path: Path) -> None:
    arguments = bench_arguments(Burst(("b", "a"), 16, 4), TARGET, tmp_path, "r.json")
    path = Path(arguments[arguments.index("--dataset-path") + 1])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"prompt": "b", "output_tokens": 16},
        {"prompt": "a", "output_tokens": 16},
    ]
    assert {"--skip-chat-template", "--disable-shuffle"} <= set(arguments)
    assert arguments[arguments.index("--max-concurrency") + 1] == "4"
    # The chat template's special tokens are in the text; a second set would change the prompt.
    assert json.loads(arguments[arguments.index("--extra-body") + 1])["add_special_tokens"] is False


def test_random_prompts_have_their_lengths_and_seed(tmp_path: Path) -> None:
    arguments = bench_arguments(Burst((), 256, 16, 1024, 32, 7), TARGET, tmp_path, "r.json")
    pairs = dict(pairwise(arguments))
    assert "--dataset-path" not in arguments
    assert (pairs["--random-input-len"], pairs["--random-output-len"]) == ("1024", "256")
    assert (pairs["--num-prompts"], pairs["--seed"]) == ("32", "7")


def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Put another program in place of ``bench_process``."""
    folder = tmp_path / "made_bench"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "bench_process.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(load, "__package__", "made_bench")


def test_a_process_that_ends_is_an_error_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(monkeypatch, tmp_path, "import sys; sys.exit('No module named vllm')")
    with (
        vllm_bench(TARGET, tmp_path / "log") as bench,
        pytest.raises(LoadError, match=r"ended with code 1:\nNo module named vllm"),
    ):
        bench.run(Burst(("a",), 8, 1))


def test_one_process_takes_many_bursts_and_is_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = f"""
import json, pathlib, sys
saved = pathlib.Path({str(RECORDED / "vllm-0.33.0-real.json")!r}).read_text()
for line in sys.stdin:
    arguments = json.loads(line)
    folder = pathlib.Path(arguments[arguments.index("--result-dir") + 1])
    name = arguments[arguments.index("--result-filename") + 1]
    (folder / name).write_text(saved)
    error = None if arguments[arguments.index("--max-concurrency") + 1] == "1" else "ValueError: no"
    print(json.dumps({{"error": error}}), flush=True)
"""
    program(monkeypatch, tmp_path, code)
    with vllm_bench(TARGET, tmp_path / "log") as bench:
        assert bench.run(Burst(("a",), 8, 1)) == bench.run(Burst(("a",), 8, 1))
        with pytest.raises(LoadError, match="ValueError: no"):
            bench.run(Burst(("a",), 8, 2))
        process = bench._process
    assert process.poll() is not None
    assert not bench.folder.exists()


def test_the_process_is_the_module_of_this_room() -> None:
    assert load.__package__ == "gptq_hybrid.receipt"
    assert sys.executable


def test_the_program_runs_vllm_s_command_again_and_again_and_tells_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = """
import json, pathlib, sys
assert sys.argv[:3] == ["vllm", "bench", "serve"], sys.argv
arguments = sys.argv[3:]
concurrency = arguments[arguments.index("--max-concurrency") + 1]
if concurrency == "2":
    sys.exit(2)
if concurrency == "3":
    raise ValueError("no such tokenizer")
print("what vLLM prints goes to the log")
folder = pathlib.Path(arguments[arguments.index("--result-dir") + 1])
name = arguments[arguments.index("--result-filename") + 1]
(folder / name).write_text(pathlib.Path(SAVED).read_text())
"""
    folder = tmp_path / "vllm" / "entrypoints" / "cli"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    saved = str(RECORDED / "vllm-0.33.0-real.json")
    (folder / "main.py").write_text(f"SAVED = {saved!r}\n{code}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with vllm_bench(TARGET, tmp_path / "log") as bench:
        assert bench.run(Burst(("a",), 8, 1)).output_tokens == (8, 8, 8)
        with pytest.raises(LoadError, match=r"refused its arguments \(exit code 2\)"):
            bench.run(Burst(("a",), 8, 2))
        with pytest.raises(LoadError, match="ValueError: no such tokenizer"):
            bench.run(Burst(("a",), 8, 3))
        assert bench.run(Burst(("a",), 8, 1)).output_tokens == (8, 8, 8)
    assert "what vLLM prints goes to the log" in (tmp_path / "log").read_text()
