"""`qwen36 check` as a user or a script sees it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check, check_rules, installed_vllm
from gptq_hybrid.doctor.vllm_releases import plugin_installed
from tests.corpus import Workshop


def qwen36(*arguments: str | Path, columns: int = 100) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("qwen36")), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


@pytest.fixture
def shop(build: Callable[..., DemoCheckpoint], tmp_path: Path) -> Workshop:
    return Workshop(build(mtp="separate").path, tmp_path / "case")


def serve_words(stdout: str) -> list[str]:
    """The command that serves, without the variables before it."""
    (line,) = [line for line in stdout.splitlines() if " vllm serve " in f" {line}"]
    words = shlex.split(line)
    return words[words.index("vllm") :]


def test_a_good_checkpoint_ends_with_the_lines_to_serve_and_to_ask_it(shop: Workshop) -> None:
    ended = qwen36("check", shop.folder, "--vllm", "0.32")
    assert ended.returncode == 0
    assert shlex.split(ended.stdout.splitlines()[-1])[0] == "curl"
    words = serve_words(ended.stdout)
    assert words[:3] == ["vllm", "serve", str(shop.folder)]
    assert json.loads(words[words.index("--speculative-config") + 1]) == {
        "method": "mtp",
        "num_speculative_tokens": 2,
    }
    assert "vLLM 0.32 with MTP: nothing found" in ended.stdout


def test_without_mtp_neither_rules_nor_line_speak_of_it(shop: Workshop) -> None:
    shop.index(lambda m: [m.pop(n) for n in list(m) if n.startswith("mtp.")])
    shop.delete(MTP_FILE)
    shop.total_size()
    assert qwen36("check", shop.folder).returncode == 1
    ended = qwen36("check", shop.folder, "--no-mtp")
    assert ended.returncode == 0
    assert "speculative" not in ended.stdout


def test_errors_come_first_and_exit_with_one(shop: Workshop) -> None:
    shop.json(INDEX_NAME, lambda i: i["metadata"].update(total_size=1))
    shop.delete("tokenizer.json")
    ended = qwen36("check", shop.folder)
    assert ended.returncode == 1
    verdict, *findings = ended.stdout.splitlines()
    assert verdict.startswith(f"{shop.folder}: will not serve")
    assert "1 error, 1 warning" in verdict
    assert findings[0].startswith(f"error[tokenizer-missing] {shop.folder}/tokenizer.json: ")
    assert findings[1].startswith("  help: ")
    assert findings[2].startswith(f"warning[index-total-size] {shop.folder}/{INDEX_NAME}: declares")
    assert "vllm serve" not in ended.stdout


def test_warnings_count_only_when_strict(shop: Workshop) -> None:
    shop.json(INDEX_NAME, lambda i: i["metadata"].update(total_size=1))
    assert qwen36("check", shop.folder).returncode == 0
    assert qwen36("check", shop.folder, "--strict").returncode == 1


@pytest.mark.parametrize("fault", ["none", "warning", "error", "unreadable", "absent"])
def test_json_is_all_that_is_printed(shop: Workshop, fault: str) -> None:
    if fault == "warning":
        shop.json(INDEX_NAME, lambda i: i["metadata"].update(total_size=1))
    if fault == "error":
        shop.delete("tokenizer.json")
    if fault == "unreadable":
        shop.path("config.json").write_text("{")
    path = shop.folder / "nowhere" if fault == "absent" else shop.folder
    ended = qwen36("check", path, "--json", columns=40)
    content = json.loads(ended.stdout)
    assert ended.stderr == ""
    result, [checkpoint] = content["result"], content["result"]["checkpoints"]
    assert checkpoint["path"] == str(path)
    expected = {"none": ("serves", 0), "warning": ("serves", 0), "error": ("faulty", 1)}
    assert (result["verdict"], ended.returncode) == expected.get(fault, ("unreadable", 2))
    assert checkpoint["verdict"] == result["verdict"]
    assert bool(checkpoint["findings"]) is (fault != "none")
    assert (content["serve"] is not None) is (result["verdict"] == "serves")


@pytest.mark.parametrize(("vllm", "code"), [("0.29", 0), ("0.30.0", 1), ("0.33", 1)])
def test_the_release_decides(shop: Workshop, vllm: str, code: int) -> None:
    quantization = {"quant_method": "compressed-tensors", "config_groups": {}, "ignore": []}
    weights = {"weights": {"actorder": "group"}, "targets": []}
    shop.config(lambda c: c.update(quantization_config=quantization | {"config_groups": {"g": weights}}))
    [checkpoint] = json.loads(qwen36("check", shop.folder, "--vllm", vllm, "--json").stdout)["result"][
        "checkpoints"
    ]
    findings = checkpoint["findings"]
    severity = {f["rule"]: f["severity"] for f in findings}["act-order-packed"]
    assert severity == ("error" if code else "warning")


@pytest.mark.parametrize(
    ("arguments", "code", "against"),
    [
        (["--vllm", "0.32"], 1, "vLLM 0.32 with MTP"),
        (["--vllm", "0.32", "--no-plugin"], 1, "vLLM 0.32 with MTP"),
        (["--vllm", "0.32", "--plugin"], 0, "vLLM 0.32 and vllm-qwen36-plugin with MTP"),
        (["--vllm", "0.29"], 0, "vLLM 0.29 with MTP"),
    ],
)
def test_act_order_serves_with_the_plugin(
    quantized: Callable[..., Any], arguments: list[str], code: int, against: str
) -> None:
    ended = qwen36("check", quantized("reference").path, *arguments, columns=200)
    assert ended.returncode == code
    assert f"checked for {against}" in ended.stdout
    assert "act-order-version" in ended.stdout
    assert ("vllm serve" in ended.stdout) is (code == 0)


@pytest.mark.parametrize(
    ("plugins", "loaded"),
    [(None, True), ("qwen36", True), ("other,qwen36", True), ("other", False), ("", False)],
)
def test_an_installed_vllm_runs_with_the_plugin_it_would_load(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, plugins: str | None, loaded: bool
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    assert plugin_installed() is loaded
    assert check(shop.folder).plugin is (loaded and installed_vllm() is not None)
    assert check(shop.folder, vllm="0.32").plugin is False


@pytest.mark.parametrize("arguments", [["--vllm", "newest"], ["--timeout", "x"], ["--no-such-option"]])
def test_bad_options_are_refused(shop: Workshop, arguments: list[str]) -> None:
    ended = qwen36("check", shop.folder, *arguments)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("what", ["./nowhere", "nowhere", "a file", "a model of another kind"])
def test_what_is_no_checkpoint_ends_with_two(tmp_path: Path, what: str) -> None:
    if what == "a file":
        (tmp_path / "x").write_text("x")
        what = str(tmp_path / "x")
    if what == "a model of another kind":
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        what = str(tmp_path)
    ended = qwen36("check", what)
    assert ended.returncode == 2
    assert ended.stderr.count("Error") == 1
    assert "Traceback" not in ended.stderr


def test_every_rule_is_listed(shop: Workshop) -> None:
    listed = qwen36("check", "--rules", columns=200)
    assert listed.returncode == 0
    assert all(rule.id in listed.stdout for rule in check_rules())


def test_rules_are_listed_as_json() -> None:
    listed = json.loads(qwen36("check", "--rules", "--json").stdout)["result"]["rules"]
    assert [rule["id"] for rule in listed] == [rule.id for rule in check_rules()]


def test_several_checkpoints_are_judged_each_and_together(
    shop: Workshop, quantized: Callable[..., Any]
) -> None:
    good, bad = quantized("static").path, shop.folder
    shop.delete("tokenizer.json")
    ended = qwen36("check", good, bad, "nowhere", "--json")
    content = json.loads(ended.stdout)
    assert ended.returncode == 2
    assert content["result"]["verdict"] == "unreadable"
    verdicts = [(c["path"], c["verdict"]) for c in content["result"]["checkpoints"]]
    assert verdicts == [(str(good), "serves"), (str(bad), "faulty"), ("nowhere", "unreadable")]
    assert content["serve"] is None
    assert serve_words(content["next"][0]["command"])[:3] == ["vllm", "serve", str(good)]
    assert [step["what"] for step in content["next"]] == ["serve it", "ask it"]
    told = qwen36("check", good, bad)
    assert told.returncode == 1
    assert told.stdout.splitlines()[-1] == "2 checkpoints: 1 serve, 1 faulty, 0 unreadable."


def test_github_shows_findings_beside_the_file(shop: Workshop) -> None:
    shop.delete("tokenizer.json")
    shop.json(INDEX_NAME, lambda i: i["metadata"].update(total_size=1))
    lines = qwen36("check", shop.folder, "--output-format", "github").stdout.splitlines()
    assert lines[0].startswith(f"::error file={shop.folder}/tokenizer.json,title=tokenizer-missing::")
    assert lines[1].startswith(f"::warning file={shop.folder}/{INDEX_NAME},title=index-total-size::")
    assert "%0Ahelp: " in lines[0]
    assert len(lines) == 2


def test_sarif_names_each_rule_it_refers_to(shop: Workshop) -> None:
    shop.delete("tokenizer.json")
    ended = qwen36("check", shop.folder, "nowhere", "--output-format", "sarif")
    log = json.loads(ended.stdout)
    [run] = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert (log["version"], ended.returncode) == ("2.1.0", 2)
    assert [(rules[r["ruleIndex"]]["id"], r["level"]) for r in run["results"]] == [
        ("tokenizer-missing", "error"),
        ("unreadable", "error"),
    ]
    uris = [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in run["results"]]
    assert uris == [(shop.folder / "tokenizer.json").as_uri(), "nowhere"]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_serve_line_is_never_broken_by_a_narrow_terminal(shop: Workshop, columns: int) -> None:
    ended = qwen36("check", shop.folder, columns=columns)
    assert serve_words(ended.stdout)[2] == str(shop.folder)


def test_a_card_s_memory_decides_the_flags_of_the_line(shop: Workshop) -> None:
    ended = qwen36("check", shop.folder, "--gpu", "RTX 4090", "--json")
    content = json.loads(ended.stdout)
    (serving,) = [checkpoint["serving"] for checkpoint in content["result"]["checkpoints"]]
    assert serving["memory"]["fits"]
    assert serving["environment"] == {}
    words = serve_words(content["serve"])
    assert words[words.index("--max-model-len") + 1] == str(serving["memory"]["context"])
    told = qwen36("check", shop.folder, "--gpu", "RTX 4090").stdout
    assert "derived, not measured: 22.3 GiB usable" in told


def test_an_unknown_card_is_refused_before_anything_is_read() -> None:
    ended = qwen36("check", "nowhere", "--gpu", "Voodoo 2")
    assert ended.returncode == 2
    assert "RTX 4090" in ended.stderr
    assert "--gpu 24GiB" in ended.stderr
    assert "nowhere" not in ended.stderr
