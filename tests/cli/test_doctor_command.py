"""`qwen36 doctor` and `qwen36 env` as people, pipes and programs see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import gptq_hybrid.cli
from tests.live.server import metrics, models, plugin_metrics, serving

SCHEMA = json.loads((Path(gptq_hybrid.cli.__file__).parent / "schema.json").read_text(encoding="utf-8"))
GOOD = metrics(num_preemptions_total=0) + plugin_metrics(("prefill", "auto", "5120x14336 exact from 2048"))
DEAD = metrics(
    num_preemptions_total=0,
    spec_decode_num_accepted_tokens_total=0,
    spec_decode_num_accepted_tokens_per_pos_total=0,
)


def qwen36(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("qwen36")), *arguments]
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "80", **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)


def test_a_server_in_order_is_told_in_a_sentence_a_table_and_a_next_step() -> None:
    with serving({"/metrics": GOOD, "/v1/models": models()}) as url:
        ended = qwen36("doctor", url)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[0].startswith(f"{url} serves qwen on vLLM ")
    assert "500 of 800 drafted tokens were accepted" in lines[0]
    assert any(
        line.split() == ["accepted", "by", "position", "1:", "75.0%,", "2:", "50.0%"] for line in lines
    )
    assert lines[-1].strip() == f"qwen36 doctor {url} --over 60"


def test_a_dead_head_is_an_error_and_exit_one() -> None:
    with serving({"/metrics": DEAD, "/v1/models": models()}) as url:
        ended = qwen36("doctor", url)
    assert ended.returncode == 1
    assert f"error[dead-head] {url}: none of 800 drafted tokens was accepted" in ended.stdout
    assert "  help: " in ended.stdout


@pytest.mark.parametrize("text", [GOOD, DEAD])
def test_json_follows_its_schema(text: str) -> None:
    with serving({"/metrics": text, "/v1/models": models(), "/version": {"version": "0.33.0"}}) as url:
        ended = qwen36("doctor", url, "--json")
    content = json.loads(ended.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    assert (content["command"], content["vllm"]) == ("doctor", "0.33.0")
    assert content["plugin"] is (text is GOOD)
    assert content["result"]["accepted_tokens"] == (500 if text is GOOD else 0)


def test_a_window_counts_what_came_in_it() -> None:
    asked: list[str] = []

    def page(_: object) -> str:
        asked.append("")
        changes = {"spec_decode_num_accepted_tokens_total": 600} if len(asked) > 1 else {}
        return metrics(num_preemptions_total=0, **changes) + plugin_metrics()

    with serving({"/metrics": page, "/v1/models": models()}) as url:
        ended = qwen36("doctor", url, "--over", "0.1", "--json")
    assert json.loads(ended.stdout)["result"]["accepted_tokens"] == 100
    assert len(asked) == 2


def test_nobody_at_home_is_one_message_and_exit_two() -> None:
    with serving({}) as url:
        pass
    ended = qwen36("doctor", url)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"Error: nothing answers at {url}")
    assert "Traceback" not in ended.stderr


def test_a_key_comes_from_the_environment() -> None:
    with serving(
        {"/metrics": GOOD, "/v1/models": lambda h: models() if h.get("Authorization") == "Bearer k" else 401}
    ) as url:
        assert "no-models" in qwen36("doctor", url).stdout
        ended = qwen36("doctor", url, VLLM_API_KEY="k")
    assert "no-models" not in ended.stdout


def test_env_is_text_to_paste_and_json_for_programs() -> None:
    # Without the plugin nothing of vLLM is imported, which takes seconds.
    told = qwen36("env", VLLM_PLUGINS="")
    assert told.returncode == 0
    assert "plugin: not loaded: VLLM_PLUGINS='' does not name it" in told.stdout
    assert "vllm-qwen36-plugin " in told.stdout
    content = json.loads(qwen36("env", "--json", VLLM_PLUGINS="").stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    assert content["result"]["plugin"]["loaded"] is False
