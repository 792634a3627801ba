"""``qwen36 eval``: a run from end to end, and input that must not start one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.evaluate import read_evaluation
from tests.command_line import Run, in_process
from tests.streaming.rounded import CHECKPOINT, HELDOUT, read_config, rounded


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def qwen36(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], here: Path) -> Run:
    """Exit code, stdout and stderr of the command, run in this process: importing takes longer than it does."""
    return in_process(monkeypatch, capfd)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rounded(tmp_path_factory.mktemp("rounded") / "mini-W4", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for domain in ("en", "python"):
        lines = (HELDOUT / f"{domain}.jsonl").read_text().splitlines()[:4]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def refused(ended: tuple[int, str, str], *words: str) -> None:
    code, out, err = ended
    assert code == 2, ended
    flat = " ".join(err.split())
    assert err.count("Error") == 1, err
    assert "Traceback" not in out + err
    for word in words:
        assert word in flat, err


def shell(*arguments: object) -> tuple[int, str, str]:
    """The installed command in a process of its own."""
    command = [str(Path(sys.executable).with_name("qwen36")), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return ended.returncode, ended.stdout, ended.stderr


def test_from_end_to_end(here: Path, copy: Path, data: Path) -> None:
    code, out, err = shell(
        "eval", CHECKPOINT, copy, "--data", data, "--limit", 3, "--max-length", 96, "--device", "cpu"
    )
    assert code == 0, err
    assert "Traceback" not in err
    assert "mini-W4: layers: 8/8" in err
    evaluation = read_evaluation(here / "qwen36-eval" / "evaluation.json")
    assert [row.domain for row in evaluation.checkpoints[0].domains] == ["en", "python"]
    assert evaluation.checkpoints[0].name == "mini-W4"
    assert evaluation.settings["documents"] == 6
    overall = evaluation.checkpoints[0].overall
    assert 0.001 < overall.kld_mean.value < 0.5
    assert overall.acceptance is not None
    assert out.startswith("mini-W4 is ")
    assert "m-nats per token from checkpoint" in out.splitlines()[0]
    assert "mini-W4 against checkpoint" in out
    assert "evaluation.json and" in out
    assert out.splitlines()[-2].startswith("Next: ")
    assert "hidden states" in out
    assert (here / "qwen36-eval" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in here.iterdir()) == ["qwen36-eval"]


def test_json_is_all_that_is_printed(here: Path, copy: Path, data: Path) -> None:
    code, out, err = shell(
        *("eval", CHECKPOINT, copy, "--data", data / "en.jsonl", "--limit", 2, "--max-length", 64),
        *("--device", "cpu", "--drafts", 0, "--no-keep-states", "--out", "results", "--json"),
    )
    assert code == 0, err
    content = json.loads(out)["result"]
    assert content == json.loads((here / "results" / "evaluation.json").read_text())
    assert content["checkpoints"][0]["overall"]["acceptance"] is None
    assert "mini-W4: layers" in err, "progress goes where it disturbs nobody"
    written = sorted(file.name for file in (here / "results").iterdir())
    assert written == ["evaluation.html", "evaluation.json", "evaluation.png"]


def test_damaged_states_are_named_in_one_line_and_the_figures_stay(
    qwen36: Run, here: Path, copy: Path, data: Path
) -> None:
    arguments: list[str | Path] = [
        "eval",
        CHECKPOINT,
        copy,
        "--data",
        data / "en.jsonl",
        "--limit",
        "1",
        "--max-length",
        "64",
    ]
    arguments += ["--device", "cpu", "--drafts", "0", "--json"]
    code, first, err = qwen36(*arguments)
    assert code == 0, err
    assert "are not used" not in err
    [states] = (here / "qwen36-eval" / "work").glob("states-*")
    content = bytearray(states.read_bytes())
    content[-1000:] = bytes(1000)
    states.write_bytes(content)
    code, again, err = qwen36(*arguments)
    assert code == 0, err
    assert json.loads(again) == json.loads(first)
    assert err.count(f"{states.name} are not used: they are damaged") == 1


def test_another_tokenizer(qwen36: Run, here: Path, copy: Path, data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-4000]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(
        qwen36("eval", CHECKPOINT, other, "--data", data),
        "other has another tokenizer than",
        "Copy the original",
    )
    assert list(here.iterdir()) == []


def test_no_tokenizer(qwen36: Run, here: Path, copy: Path, data: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(copy, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*")))
    refused(qwen36("eval", CHECKPOINT, bare, "--data", data), "bare has no tokenizer", "tokenizer.json")
    assert list(here.iterdir()) == []


def test_another_model(qwen36: Run, here: Path, original: DemoCheckpoint, data: Path) -> None:
    refused(
        qwen36("eval", CHECKPOINT, original.path, "--data", data), "not a checkpoint of the reference's model"
    )
    assert list(here.iterdir()) == []


def test_the_wrong_order(qwen36: Run, here: Path, copy: Path, data: Path) -> None:
    refused(qwen36("eval", copy, CHECKPOINT, "--data", data), "mini-W4 is quantized", "BF16 original first")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "nowhere.jsonl"),
        ('{"text": "cut sh\n', "nowhere.jsonl"),
        ("", "no documents"),
        ('{"text": "short"}\n', "no document has 10 tokens"),
    ],
)
def test_documents_that_cannot_be_used(
    qwen36: Run, here: Path, copy: Path, tmp_path: Path, content: str | None, words: str
) -> None:
    file = tmp_path / "nowhere.jsonl"
    if content is not None:
        file.write_text(content)
    refused(qwen36("eval", CHECKPOINT, copy, "--data", file), words)
    assert list(here.iterdir()) == []


def test_a_checkpoint_in_another_format(
    qwen36: Run, here: Path, copy: Path, data: Path, tmp_path: Path
) -> None:
    awq = Path(shutil.copytree(copy, tmp_path / "awq"))
    config = read_config(awq)
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    (awq / "config.json").write_text(json.dumps(config))
    refused(qwen36("eval", CHECKPOINT, awq, "--data", data), "is quantized by 'awq'", "GPTQ checkpoint")
    assert list(here.iterdir()) == []


def test_a_checkpoint_that_is_not_there(qwen36: Run, here: Path, data: Path) -> None:
    refused(qwen36("eval", CHECKPOINT, "./nowhere", "--data", data), "nowhere", "is not a folder")
    assert list(here.iterdir()) == []


def test_half_an_mtp_head(qwen36: Run, here: Path, copy: Path, data: Path, tmp_path: Path) -> None:
    from tests.streaming.rounded import copy_with, read_tensors

    tensors = {k: v for k, v in read_tensors(copy).items() if k != "mtp.norm.weight"}
    half = copy_with(tmp_path / "half", tensors, read_config(copy), copy)
    refused(
        qwen36("eval", CHECKPOINT, half, "--data", data),
        "lacks 1 of 15 tensors of the MTP head",
        "--drafts 0",
    )
    assert list(here.iterdir()) == []


def test_results_that_could_not_be_written(
    qwen36: Run, here: Path, copy: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    refused(
        qwen36("eval", CHECKPOINT, copy, "--data", data, "--out", tmp_path / "file" / "out"),
        "is a file, not a folder",
    )


def test_tasks_without_lm_eval(qwen36: Run, here: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    find_spec = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *a: None if name == "lm_eval" else find_spec(name, *a)
    )
    refused(
        qwen36("eval", CHECKPOINT, copy, "--tasks", "gsm8k"), "lm-eval, which is not installed", "pip install"
    )
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "revision"), [("Some-One/A-Model", None), ("Some-One/A-Model@0a1b2c", "0a1b2c")]
)
def test_hub_ids_are_downloaded_at_their_revision(
    source: str, revision: str | None, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    import huggingface_hub

    from gptq_hybrid.cli._quantize import resolve_source

    seen: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None) -> str:
        seen.append((name, revision))
        return "/cache/snapshot"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_source(source) == Path("/cache/snapshot")
    assert seen == [("Some-One/A-Model", revision)]
