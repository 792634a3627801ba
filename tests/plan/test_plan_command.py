"""`qwen36 plan` as a user or a script sees it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import jsonschema
import pytest

import gptq_hybrid.cli
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import place
from tests.checkpoint.range_server import serving
from tests.command_line import Run, in_process

SCHEMA = json.loads((Path(gptq_hybrid.cli.__file__).parent / "schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return in_process(monkeypatch, capfd, "plan")


def test_the_verdict_comes_first_and_the_line_to_serve_last(
    run: Run, original: DemoCheckpoint, tmp_path: Path
) -> None:
    picture = tmp_path / "plan.png"
    code, out, err = run(original.path, "--gpu", "l40s", "--context", "256", "--plot", picture)
    assert (code, err) == (0, "")
    assert out.startswith(f"{original.path} on L40S: fits: ")
    assert picture.read_bytes().startswith(b"\x89PNG")
    for words in ("Gated-DeltaNet states", "By drafts", "recipe compact", "exact", "estimated", "derived"):
        assert words in out
    line = next(line for line in out.splitlines() if line.startswith("  vllm serve "))
    assert "--max-model-len 256" in line
    told = out[out.index("\nFlags\n") :]
    for word in shlex.split(line):
        if word.startswith("--"):
            assert f"\n  {word}" in told


def test_json_is_by_the_schema(run: Run, original: DemoCheckpoint) -> None:
    code, out, _ = run(
        original.path, "--memory", "24GiB", "--bandwidth", "1008GB/s", "--concurrency", "4", "--json"
    )
    content = json.loads(out)
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    assert code == 0
    result = content["result"]
    assert result["solved"] == ["context", "drafts", "KV type"]
    assert sum(part["bytes"] for part in result["parts"]) == 24 << 30
    assert content["serve"].startswith("vllm serve ")


def test_what_does_not_fit_ends_with_1_and_no_line(run: Run, original: DemoCheckpoint) -> None:
    code, out, _ = run(original.path, "--memory", "2GiB", "--json")
    content = json.loads(out)
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    assert code == 1
    assert content["result"]["verdict"] in ("may fit", "does not fit")
    assert content["serve"] is None
    code, out, _ = run(original.path, "--memory", "2GiB")
    assert code == 1
    assert "vllm serve" not in out


def test_a_faulty_checkpoint_is_said_first(run: Run, original: DemoCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "faulty"
    shutil.copytree(original.path, folder)
    (folder / "tokenizer.json").unlink()
    code, out, _ = run(folder, "--gpu", "l40s", "--context", "256")
    assert code == 1
    assert "will not serve" in out.splitlines()[0]
    assert "error[" in out.splitlines()[1]
    assert "on L40S: " in out
    assert "vllm serve" not in out
    code, out, _ = run(folder, "--gpu", "l40s", "--context", "256", "--json")
    content = json.loads(out)
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    assert content["result"]["findings"]


def test_a_checkpoint_on_a_server_is_not_downloaded(run: Run, original: DemoCheckpoint) -> None:
    with serving(original.path) as server:
        code, out, _ = run(server.url, "--gpu", "l40s", "--context", "256", "--quiet")
        assert code == 0
        assert " on L40S: fits: " in out
        assert server.sent < sum(file.stat().st_size for file in original.path.glob("*.safetensors"))


def test_auto_is_this_machine_s_gpu(
    run: Run, original: DemoCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "cpu_build", lambda: False)
    monkeypatch.setattr(place, "gpus", list)
    code, _, err = run(original.path, "--gpu", "auto")
    assert code == 2
    assert "no GPU was found here" in err
    from gptq_hybrid.common.machine import Gpu

    monkeypatch.setattr(place, "gpus", lambda: [Gpu("NVIDIA GeForce RTX 4090", 24.0, (8, 9), "580")])
    code, out, _ = run(original.path, "--gpu", "auto", "--context", "256")
    assert code == 0
    assert "on RTX 4090: fits" in out


LOG = (
    "INFO [core.py:105] Initializing a V1 LLM engine (v0.32.0) with config: model={model!r}, "
    "speculative_config=None, "
    "max_seq_len=512, tensor_parallel_size=1, kv_cache_dtype=auto, enable_prefix_caching=False\n"
    "INFO [gpu_worker.py:700] Available KV cache memory: 1.0 GiB\n"
    "INFO [kv_cache_utils.py:2327] GPU KV cache size: {tokens:,} tokens, Maximum concurrency for 512 "
    "tokens per request: "
    "1.0x\n"
)


def test_a_log_is_explained_with_the_checkpoint_it_names(
    run: Run, original: DemoCheckpoint, tmp_path: Path
) -> None:
    from gptq_hybrid.checkpoint import Checkpoint
    from gptq_hybrid.memory import cache_layout

    layout = cache_layout(Checkpoint.open(original.path), prefix_caching=False)
    file = tmp_path / "start.log"
    file.write_text(LOG.format(model=str(original.path), tokens=layout.reported_tokens(1 << 30, 512)))
    code, out, _ = run("--explain", file)
    assert code == 0
    assert "times the requests of that length that fit at once" in out
    assert "--kv-cache-dtype fp8" in out
    code, out, _ = run("--explain", file, "--json")
    content = json.loads(out)
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    assert content["result"]["counted"] == "requests"
    file.write_text(LOG.format(model="/gone/away", tokens=5))
    code, _, err = run("--explain", file)
    assert code == 2
    assert "the log is of /gone/away" in err
    assert f"qwen36 plan CHECKPOINT --explain {file}" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "Voodoo 5"], ["no card known here", "RTX 4090", "--memory 24GiB --bandwidth 1008GB/s"]),
        (["--memory", "24"], ["no GPU's memory", "24GiB"]),
        (["--memory", "24GiB", "--bandwidth", "fast"], ["no bandwidth", "1008GB/s"]),
        (["--memory", "24GiB", "--gpu", "l40s"], ["both name a card"]),
        ([], ["no GPU was named", "--gpu auto"]),
        (["--gpu", "cpu"], ["a plan is of a GPU's memory", "qwen36 check"]),
        (["--gpu", "l40s", "--kv", "int3"], ["no KV type", "fp8"]),
        (["--gpu", "l40s", "--context", "99999999"], ["tokens that this model takes"]),
        (["--gpu", "l40s", "--acceptance", "90,80"], ["list of shares"]),
        (["--gpu", "l40s", "--plot", "/gone/away/x.png"], ["there is no folder /gone/away"]),
        (["--gpu", "l40s", "--tp", "7"], ["cannot be divided among 7"]),
    ],
)
def test_bad_input_is_one_clear_error(
    run: Run, original: DemoCheckpoint, arguments: list[str], words: list[str]
) -> None:
    code, out, err = run(original.path, *arguments)
    assert (code, out) == (2, "")
    assert err.count("Error:") == 1
    for word in words:
        assert word in err


def test_what_is_no_checkpoint_is_one_error(run: Run, tmp_path: Path) -> None:
    code, out, err = run(tmp_path / "nothing", "--gpu", "l40s")
    assert (code, out) == (2, "")
    assert err.count("Error:") == 1
    code, _, err = run("--gpu", "l40s")
    assert code == 2
    assert "no checkpoint was named" in err
