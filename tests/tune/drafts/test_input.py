"""``qwen36 tune drafts``: one clear error, and no server, for what cannot be measured."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from gptq_hybrid.cli import main
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.hooks import GpuProfile
from tests.tune.drafts.made import ENVIRONMENT, MINI, grid, mini
from vllm_qwen36_plugin.tune.drafts import command as _command
from vllm_qwen36_plugin.tune.drafts import run as _run
from vllm_qwen36_plugin.tune.drafts.grid import serve_flags, token_limits

CARD = GpuProfile(
    "Card",
    ("A card",),
    (8, 9),
    45.0,
    ("--kv-cache-dtype", "fp8", "--max-num-seqs", "8"),
    "derived: for a test",
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def no_server(*_: object, **__: object) -> None:
        raise AssertionError("a server was to start")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_run, "vllm_server", no_server)
    monkeypatch.setattr(_command, "probe_machine", lambda: (True, dict(ENVIRONMENT)))
    (tmp_path / "prompts.jsonl").write_text('{"text": "Once upon a time"}\n')
    (tmp_path / "empty.jsonl").touch()
    return tmp_path


def error_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str | Path
) -> str:
    """The one error that the command ends with; exit code 2, nothing else printed."""
    monkeypatch.setattr(sys, "argv", ["qwen36", "tune", "drafts", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.count("Error") == 1
    return " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MINI, "none.jsonl"), "none.jsonl does not exist"),
        ((MINI, "empty.jsonl"), "empty.jsonl is empty"),
        ((MINI, "prompts.jsonl"), "has no prompt long enough"),
        (("nowhere", "prompts.jsonl"), "nowhere"),
        (
            (MINI, "prompts.jsonl", "--numbers", "1,x"),
            "--numbers '1,x' is no list of whole numbers",
        ),
        ((MINI, "prompts.jsonl", "--batches", "0,1"), "--batches '0,1' is no list"),
        ((MINI, "prompts.jsonl", "--context", "short,huge"), "'huge' is neither short nor long"),
        ((MINI, "prompts.jsonl", "--requests", "4"), "--requests 4 are fewer than the 16"),
        ((MINI, "prompts.jsonl", "--long-tokens", "8192"), "are more than the 8,192 that"),
        ((MINI, "prompts.jsonl", "--out", "."), "is a folder"),
        (
            (MINI, "prompts.jsonl", "--context", "short", "--vllm-args", "--port 80"),
            "--vllm-args may not have --port",
        ),
    ],
)
def test_bad_input(
    arguments: tuple[str | Path, ...],
    message: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert message in error_of(monkeypatch, capfd, *arguments)
    assert sorted(path.name for path in here.iterdir()) == ["empty.jsonl", "prompts.jsonl"]


@pytest.mark.parametrize(("declared", "message"), [(False, "has no MTP head"), (True, "mtp.")])
def test_a_checkpoint_without_a_head(
    declared: bool,
    message: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its config knows of none; or it does, and the file is gone."""
    headless = here / "headless"
    shutil.copytree(MINI, headless)
    (headless / "mtp.safetensors").unlink()
    index = json.loads((headless / "model.safetensors.index.json").read_text())
    index["weight_map"] = {
        name: file for name, file in index["weight_map"].items() if file != "mtp.safetensors"
    }
    (headless / "model.safetensors.index.json").write_text(json.dumps(index))
    if not declared:
        config = json.loads((headless / "config.json").read_text())
        config["text_config"]["mtp_num_hidden_layers"] = 0
        (headless / "config.json").write_text(json.dumps(config))
    err = error_of(monkeypatch, capfd, headless, "prompts.jsonl", "--context", "short")
    assert message in err
    assert "qwen36 repair" in err


def test_a_file_that_is_no_result_is_left_alone(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.json").write_text('{"kind": "something"}')
    arguments = (MINI, "prompts.jsonl", "--context", "short", "--out", "mine.json")
    assert "is no result of this command" in error_of(monkeypatch, capfd, *arguments)
    assert (here / "mine.json").read_text() == '{"kind": "something"}'


def flags(extra: str = "", **changes: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    values: dict[str, object] = {
        "profile": CARD,
        "batches": (1, 16),
        "counts": (0, 2),
        "length": 9000,
        "on_cpu": False,
    }
    return serve_flags(mini(), extra, **(values | changes))  # type: ignore[arg-type]


def test_the_server_takes_all_that_are_in_flight_and_no_cache() -> None:
    arguments, recommended = flags()
    # vLLM goes by the last of two.
    assert arguments[-5:] == ("--no-enable-prefix-caching", "--max-num-seqs", "16", "--max-model-len", "9000")
    assert "fp8" in arguments
    at = recommended.index(CARD.serve_flags[0])
    assert recommended[at : at + 4] == CARD.serve_flags
    # What the card says goes before what its memory would allow; the rest is computed.
    assert recommended.count("--max-num-seqs") == 1
    assert "--max-model-len" in recommended
    assert "--no-enable-prefix-caching" not in recommended


def test_ones_own_flags_replace_the_profiles() -> None:
    arguments, recommended = flags("--max-model-len=5000 --max_num_seqs 32 --quantization 'a b'")
    assert arguments[-4:] == ("--max-model-len=5000", "--max_num_seqs", "32", "--quantization", "a b")[-4:]
    assert "fp8" not in arguments
    assert [name for name in arguments if name.startswith("--max")] == [
        "--max-model-len=5000",
        "--max_num_seqs",
    ]
    assert recommended[-2:] == ("--quantization", "a b")


def test_a_cpu_build_gets_what_it_needs() -> None:
    arguments, recommended = flags(profile=None, on_cpu=True)
    for flags_of_server in (arguments, recommended):
        assert {"--enforce-eager", "--no-enable-prefix-caching", "--limit-mm-per-prompt"} <= set(
            flags_of_server
        )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--speculative-config '{}'", "--numbers"),
        ("--speculative_config={}", "--numbers"),
        ("--speculative-config.method mtp", "--numbers"),
        ("--enable-prefix-caching", "from the cache"),
        ("--max-num-seqs 8", "does not let 16 requests run at once"),
        ("--max-num-seqs=8", "does not let 16 requests run at once"),
        ("--quantization 'gptq", "cannot be split"),
    ],
)
def test_flags_that_would_measure_something_else(extra: str, message: str) -> None:
    with pytest.raises(HybridError, match=message):
        flags(extra)


def test_lengths_that_the_model_takes() -> None:
    assert token_limits(mini(), None, 64) == (8192 - 64 - 64, 8192)
    assert token_limits(mini(), 1000, 256) == (1000, 8192)
    with pytest.raises(HybridError, match="more than the 8,192"):
        token_limits(mini(), None, 8192)


def test_settings_tell_apart_what_bears_on_a_cell() -> None:
    base = grid().settings(ENVIRONMENT)
    assert grid(counts=(0, 4), contexts=("short",)).settings(ENVIRONMENT) == base
    for changed in ({"max_tokens": 65}, {"temperature": 0.5}, {"repeats": 5}, {"long_tokens": 1025}):
        assert grid(**changed).settings(ENVIRONMENT) != base
    assert grid().settings({**ENVIRONMENT, "vllm": "0.27.0"}) != base
