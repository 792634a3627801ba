"""``qwen36 receipt`` from the command line, against a server that is a fake one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.command_line import Run, in_process

from .fake import FakeVllm, fake_vllm
from .made import MINI, patched

SCHEMA = json.loads((Path(__file__).parents[2] / "gptq_hybrid" / "cli" / "schema.json").read_text())


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm(root=str(MINI)) as server:
        yield server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capfd, "receipt")


def as_json(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    jsonschema.validate(value, SCHEMA)
    return value


def test_a_running_server_gets_a_receipt_with_every_domain_and_batch(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    patched(monkeypatch, fake)
    code, stdout, stderr = run(fake.url, "--quick", "--json")
    assert code == 0, stderr
    result = as_json(stdout)["result"]
    cells = {(cell["domain"], cell["batch"]) for cell in result["cells"]}
    domains = {"chat", "code", "reasoning", "structured", "german", "chinese"}
    assert cells == {(domain, 1) for domain in domains} | {("all", 4)}
    assert result["complete"]
    assert result["subject"]["digest"]
    assert result["server"]["drafts"] == 2
    # The first position was always accepted, the second never.
    assert {tuple(cell["summary"]["acceptance_by_position"]) for cell in result["cells"]} == {(1.0, 0.0)}
    assert Path("qwen36-receipt/receipt.md").read_text().startswith("## Speed")


def test_a_receipt_holds_no_prompt_and_no_path_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run, tmp_path: Path
) -> None:
    patched(monkeypatch, fake)
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "What is the secret of the lighthouse?", "domain": "mine"}\n')
    assert run(MINI, "--quick", "--prompts", own, "--", "--max-num-seqs", "4")[0] == 0
    text = Path("qwen36-receipt/receipt.json").read_text()
    assert "lighthouse" not in text
    assert str(MINI.parent) not in text
    assert str(tmp_path) not in text
    assert '"mine"' in text


def test_a_checkpoint_is_served_with_the_flags_behind_the_dashes(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    patched(monkeypatch, fake)
    config = '{"method": "mtp", "num_speculative_tokens": 2}'
    code, stdout, _ = run(MINI, "--quick", "--json", "--", "--speculative-config", config)
    server = as_json(stdout)["result"]["server"]
    assert code == 0
    assert server["arguments"][:3] == ["checkpoint", "--speculative-config", config]
    assert server["kv_cache_gib"] == 1.5
    assert server["rejection"] == "standard"


def test_a_server_that_dies_keeps_what_it_has_and_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    # The first burst of a shape warms up; the fifth is the third repeat or so.
    patched(monkeypatch, fake, fails_at=5)
    code, _, stderr = run(MINI, "--quick", "--", "--max-num-seqs", "4")
    assert code == 2
    assert "ended while chinese, short context, batch 1" in stderr
    assert "3 repeats are kept in qwen36-receipt/receipt.json" in stderr
    kept = json.loads(Path("qwen36-receipt/receipt.json").read_text())
    assert not kept["complete"]
    assert sum(len(cell["repeats"]) for cell in kept["cells"]) == 3
    made = patched(monkeypatch, fake)
    code, _, stderr = run(MINI, "--quick", "--", "--max-num-seqs", "4")
    assert code == 0, stderr
    assert "3 repeats are taken from qwen36-receipt" in stderr
    # 14 repeats and a warm-up of each of two shapes, less the three that were there.
    assert made.bursts == 14 - 3 + 2
    assert json.loads(Path("qwen36-receipt/receipt.json").read_text())["complete"]


def test_a_folder_with_a_receipt_of_something_else_is_refused_before_a_server_starts(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    patched(monkeypatch, fake)
    assert run(MINI, "--quick", "--", "--max-num-seqs", "4")[0] == 0
    before = Path("qwen36-receipt/receipt.json").read_bytes()
    made = patched(monkeypatch, fake)
    code, _, stderr = run(MINI, "--quick", "--max-tokens", "16", "--", "--max-num-seqs", "4")
    assert code == 2
    assert "max_tokens 32 then, 16 now" in stderr
    assert made.bursts == 0
    assert Path("qwen36-receipt/receipt.json").read_bytes() == before


def test_a_complete_receipt_is_shown_again_without_a_server(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    patched(monkeypatch, fake)
    first = run(MINI, "--quick", "--", "--max-num-seqs", "4")
    made = patched(monkeypatch, fake)
    again = run(MINI, "--quick", "--", "--max-num-seqs", "4")
    assert (first[0], again[0], made.bursts) == (0, 0, 0)
    assert first[1] == again[1]
    assert "is complete already, so nothing was measured" in again[2]


def test_a_receipt_of_the_weights_that_were_there_before_is_not_taken_for_these(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "mine"
    shutil.copytree(MINI, folder)
    patched(monkeypatch, fake)
    assert run(folder, "--quick", "--", "--max-num-seqs", "4")[0] == 0
    head = folder / "mtp.safetensors"
    raw = bytearray(head.read_bytes())
    raw[-64:] = bytes(64)
    raw[len(raw) // 2 :: 97] = bytes(len(raw[len(raw) // 2 :: 97]))
    head.write_bytes(raw)
    made = patched(monkeypatch, fake)
    code, _, stderr = run(folder, "--quick", "--", "--max-num-seqs", "4")
    assert (code, made.bursts) == (2, 0)
    assert "is of something else: digest" in stderr


def test_verify_measures_the_same_again_and_says_equal(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    patched(monkeypatch, fake)
    assert run(fake.url, "--quick")[0] == 0
    patched(monkeypatch, fake)
    code, stdout, _ = run(fake.url, "--verify", "qwen36-receipt", "--json")
    result = as_json(stdout)["result"]
    assert (code, result["verdict"]) == (0, "equal")
    assert {tuple(row["ratios"]) for row in result["rows"]} == {
        ("ttft_ms", "tpot_ms", "tokens_per_second", "acceptance_length")
    }


def test_verify_says_not_equal_with_the_ratio_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    patched(monkeypatch, fake)
    assert run(fake.url, "--quick")[0] == 0
    patched(monkeypatch, fake, tpot_ms=6.0)
    code, stdout, _ = run(fake.url, "--verify", "qwen36-receipt")
    assert code == 1
    assert stdout.startswith("Not equal: 2 of 8 figures differ.")
    assert "Time per token, short context, batch 1: 1.20" in stdout


def test_verify_wants_the_prompts_that_the_other_had(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run, tmp_path: Path
) -> None:
    patched(monkeypatch, fake)
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "What is it?"}\n{"prompt": "Why is it?"}\n')
    assert run(fake.url, "--quick", "--prompts", own)[0] == 0
    code, _, stderr = run(fake.url, "--verify", "qwen36-receipt")
    assert code == 2
    assert "the prompts are not those of the other receipt" in stderr
    assert "--prompts" in stderr
    assert run(fake.url, "--verify", "qwen36-receipt", "--prompts", own)[0] == 0


def test_compare_gives_ratios_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    patched(monkeypatch, fake)
    assert run(fake.url, "--quick", "--out", "a")[0] == 0
    patched(monkeypatch, fake, tpot_ms=4.0)
    assert run(fake.url, "--quick", "--out", "b")[0] == 0
    code, stdout, _ = run("--compare", "a", "b", "--json")
    rows = as_json(stdout)["result"]["rows"]
    assert code == 0
    assert [row["ratios"]["tpot_ms"]["value"] for row in rows] == [0.8, 0.8]


def test_random_prompts_with_drafts_are_called_fiction_and_not_compared(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    patched(monkeypatch, fake)
    code, _, stderr = run(fake.url, "--random", "64/16", "--batches", "1,2", "--repeats", "2")
    assert code == 0
    assert "[random-prompts-with-drafts]" in stderr
    code, _, stderr = run("--compare", "qwen36-receipt", "qwen36-receipt")
    assert code == 2
    assert "an accident" in stderr


def test_a_warm_cache_is_measured_where_there_is_one(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    with fake_vllm(root=str(MINI), caching=True) as fake:
        patched(monkeypatch, fake)
        code, stdout, stderr = run(
            fake.url, "--contexts", "1024", "--batches", "1", "--repeats", "2", "--json"
        )
    assert code == 0, stderr
    cold, warm = as_json(stdout)["result"]["cells"]
    assert (cold["cache"], warm["cache"]) == ("cold", "warm")
    assert cold["summary"]["prefix_cache_hit_rate"] == 0
    assert warm["summary"]["prefix_cache_hit_rate"] == 1
    assert 900 < cold["summary"]["prompt_tokens"] <= 1024
    assert "prefix-hits" not in stderr


def test_a_context_that_the_server_does_not_take_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    fake.length = 4096
    patched(monkeypatch, fake)
    code, stdout, stderr = run(
        fake.url, "--contexts", "short,2048,16384", "--batches", "1", "--max-tokens", "16", "--json"
    )
    assert code == 0
    assert {cell["context"] for cell in as_json(stdout)["result"]["cells"]} == {"short", "2048"}
    assert "16384 tokens and an answer do not fit the server's 4,096" in stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "what is to be measured?"),
        (("nowhere:1",), "nothing answers at http://nowhere:1"),
        (("{url}", "--batches", "0"), "--batches '0' is no list of whole numbers from 1"),
        (("{url}", "--contexts", "long"), "--contexts 'long'"),
        (("{url}", "--random", "1024"), "--random '1024' is not PROMPT/ANSWER"),
        (("{url}", "--prompts", "none.jsonl"), "none.jsonl does not exist"),
        (("{url}", "--eval", "none.json"), "none.json: does not exist"),
        (("{url}", "--benchmark", "name"), "--benchmark 'name' is no data set"),
        (("{url}", "--", "--max-num-seqs", "4"), "the server runs already"),
        (("{url}", "--reference-card"), "is a server"),
        (("{url}", "--acceptance", "0.5"), "go with --reference-card"),
        (("none",), "none"),
        (("{mini}", "--", "--port", "1"), "--port may not be given"),
        (("--compare", "a", "b"), "a: does not exist"),
        (("{url}", "--verify", "none"), "none: does not exist"),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
    fake: FakeVllm,
    run: Run,
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
) -> None:
    made = patched(monkeypatch, fake)
    code, stdout, stderr = run(*(part.format(url=fake.url, mini=MINI) for part in arguments))
    assert code == 2
    assert stdout == ""
    assert said in stderr
    assert stderr.count("Error:") == 1
    assert made.bursts == 0
    assert not list(tmp_path.glob("*/receipt.json"))


def test_a_page_that_is_no_vllm_is_one_clear_error(run: Run) -> None:
    from tests.live.server import serving

    with serving({"/metrics": "<html>Hello</html>"}) as url:
        code, _, stderr = run(url)
    assert code == 2
    assert "is no vLLM server" in stderr


def test_without_vllm_it_says_where_requests_come_from(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    from gptq_hybrid.receipt import run as room

    monkeypatch.setattr(room, "find_spec", lambda name: None)
    code, _, stderr = run(fake.url)
    assert code == 2
    assert "vllm bench serve" in stderr
    assert "pip install" in stderr


def test_a_faulty_checkpoint_is_said_first_and_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "faulty"
    shutil.copytree(MINI, folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if not k.startswith("mtp.")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    patched(monkeypatch, fake)
    code, stdout, stderr = run(folder, "--quick", "--json", "--", "--max-num-seqs", "4")
    assert code == 0
    assert stderr.index("qwen36 check:") < stderr.index("warm-up")
    assert any(w["rule"] == "faulty-checkpoint" for w in as_json(stdout)["result"]["warnings"])


def test_the_reference_card_has_stock_and_the_plugin_side_by_side(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    patched(monkeypatch, fake)
    code, stdout, stderr = run(MINI, "--reference-card", "--quick", "--repeats", "2", "--json")
    assert code == 0, stderr
    result = as_json(stdout)["result"]
    assert [column["variant"] for column in result["columns"]] == ["stock", "plugin"]
    for column in result["columns"]:
        assert column["figures"]["kv_cache_tokens"] == 4096
        assert column["figures"]["tpot_ms_batch_1"]["value"] == 5.0
    stock = json.loads(Path("qwen36-reference/checkpoint-stock/receipt.json").read_text())
    assert stock["server"]["environment"]["VLLM_PLUGINS"] == ""
    assert "16 requests: TTFT, ms" in Path("qwen36-reference/reference.md").read_text()


def test_on_a_gpu_the_reference_card_has_vllm_accept_drafts_at_the_given_rates(
    monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, run: Run
) -> None:
    from gptq_hybrid.receipt import reference, target

    patched(monkeypatch, fake)
    for module in (reference, target):
        monkeypatch.setattr(module, "this_place", lambda: None)
    code, stdout, _ = run(
        MINI,
        "--reference-card",
        "--quick",
        "--acceptance",
        "0.8,0.5",
        "--json",
        "--",
        "--max-model-len",
        "4096",
    )
    assert code == 0
    receipt = json.loads(Path("qwen36-reference/checkpoint-plugin/receipt.json").read_text())
    assert receipt["server"]["rejection"] == "synthetic"
    assert receipt["server"]["synthetic_rates"] == [0.8, 0.5]
    assert not as_json(stdout)["result"]["warnings"]
    assert "random-prompts-with-drafts" not in json.dumps(receipt["warnings"])
