"""``qwen36 card``: what goes on it, and what it never overwrites."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.checkpoint.fingerprint import checkpoint_fingerprint
from gptq_hybrid.receipt.card import BEGIN, END
from gptq_hybrid.receipt.hub import write_eval_results
from gptq_hybrid.receipt.record import Receipt
from tests.command_line import Run, in_process

from .made import MINI, receipt

ESTIMATE = {"value": 0.0236, "low": 0.02, "high": 0.03}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MINI, tmp_path / "mini")
    return in_process(monkeypatch, capfd, "card", "mini")


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., Path]:
    """Write a receipt of the small checkpoint."""

    def write(name: str = "receipt.json", **changes: Any) -> Path:
        made: Receipt = receipt(**changes)
        if "subject" not in changes:
            made.subject["digest"] = checkpoint_fingerprint(Checkpoint.open(MINI))
        made.write(tmp_path / name)
        return tmp_path / name

    return write


def evaluation(path: Path) -> Path:
    figures = dict.fromkeys(("kld_mean", "top1", "perplexity_ratio"), ESTIMATE)
    summary = {**figures, "tokens": 100, "documents": 9, "acceptance": {"length": ESTIMATE}}
    task = {"checkpoint": "mini", "filter": "strict-match", "stderr": 0.01, "documents": 50}
    content = {
        "schema": 1,
        "reference": "OWNER/original",
        "checkpoints": [{"name": "mini", "overall": summary, "domains": [{**summary, "domain": "code"}]}],
        "environment": {},
        "tasks": {
            "scores": [
                {**task, "task": "gsm8k", "metric": "exact_match", "value": 0.625},
                {**task, "task": "house", "metric": "acc", "value": 0.5},
            ],
            "settings": {"lm_eval": "0.4.9", "chat": True, "limit": None},
        },
    }
    path.write_text(json.dumps(content))
    return path


def test_a_card_has_what_the_checkpoint_its_receipt_and_its_evaluation_say(
    run: Run, measured: Callable[..., Path], tmp_path: Path
) -> None:
    code, stdout, stderr = run(
        "--receipt", measured(), "--eval", evaluation(tmp_path / "e.json"), "--license", "apache-2.0"
    )
    assert code == 0, stderr
    assert "What it is, Serve, Speed: A card, vLLM 0.32.0, Quality" in stdout
    text = Path("mini/README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "OWNER/original"
    assert front["license"] == "apache-2.0"
    assert "| MTP head | yes |" in text
    assert "vllm serve mini --speculative-config" in text
    assert str(tmp_path) not in text
    assert "0.0236 [0.0200, 0.0300]" in text
    assert "0.6250 ± 0.0100" in text
    assert Path("mini/receipts/a-card-vllm-0.32.0-plugin-prompts.json").is_file()
    assert "hf upload OWNER/mini mini" in stdout


def test_tasks_that_the_hub_knows_are_written_in_its_form(
    run: Run, measured: Callable[..., Path], tmp_path: Path
) -> None:
    from huggingface_hub import parse_eval_result_entries

    assert run("--receipt", measured(), "--eval", evaluation(tmp_path / "e.json"))[0] == 0
    listed = yaml.safe_load(Path("mini/.eval_results/qwen36.yaml").read_text())
    (entry,) = parse_eval_result_entries(listed)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 62.5)
    assert entry.notes is not None
    assert "lm-eval 0.4.9" in entry.notes
    assert entry.date == "2026-11-30T20:00:00+00:00"


def test_speed_goes_to_the_hub_only_under_a_data_set_that_the_user_names(tmp_path: Path) -> None:
    assert write_eval_results(receipt(), tmp_path) is None
    path = write_eval_results(receipt(), tmp_path, "OWNER/speed")
    assert path is not None
    listed = yaml.safe_load(path.read_text())
    assert {entry["dataset"]["id"] for entry in listed} == {"OWNER/speed"}
    by_task = {entry["dataset"]["task_id"]: entry for entry in listed}
    assert by_task["chat_short_batch1_tpot_ms"]["value"] == pytest.approx(10.5, abs=0.1)
    assert "A card, vLLM 0.32.0" in by_task["chat_short_batch1_tpot_ms"]["notes"]


def test_a_card_written_by_hand_is_never_replaced_without_force(run: Run) -> None:
    Path("mini/README.md").write_text("# By hand\n")
    code, _, stderr = run()
    assert code == 2
    assert "was written by hand" in stderr
    assert BEGIN in stderr
    assert Path("mini/README.md").read_text() == "# By hand\n"
    code, _, stderr = run("--force")
    assert code == 0
    assert "README.md.bak" in stderr
    assert Path("mini/README.md.bak").read_text() == "# By hand\n"


def test_only_what_is_between_the_marks_is_written_again(run: Run, measured: Callable[..., Path]) -> None:
    Path("mini/README.md").write_text(f"# By hand\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    assert run("--receipt", measured())[0] == 0
    text = Path("mini/README.md").read_text()
    assert text.startswith("# By hand\n\nbefore\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    # The receipt lies in the folder now, and stays on the card.
    assert run()[0] == 0
    assert Path("mini/README.md").read_text() == text


def test_a_receipt_of_other_weights_is_refused_and_nothing_is_written(
    run: Run, measured: Callable[..., Path]
) -> None:
    other = measured(subject={"name": "other", "digest": "99" * 32})
    code, _, stderr = run("--receipt", other)
    assert code == 2
    assert "is of another checkpoint: other" in stderr
    assert not Path("mini/README.md").exists()
    assert not Path("mini/receipts").exists()


def test_a_receipt_that_is_not_complete_is_refused(run: Run, measured: Callable[..., Path]) -> None:
    code, _, stderr = run("--receipt", measured(complete=False))
    assert code == 2
    assert "is not complete" in stderr


def test_what_quantizing_left_is_on_the_card(run: Run) -> None:
    Path("mini/calibration.json").write_text(
        json.dumps({"domains": {"code": {"documents": 5, "tokens": 900, "licences": ["MIT"]}}})
    )
    Path("mini/quant_log.csv").write_text(
        "layer,module,loss,samples,damp,time\n0,mlp.up_proj,0.001,5,0.01,1.0\n"
    )
    assert run()[0] == 0
    text = Path("mini/README.md").read_text()
    assert "| code | 5 | 900 | MIT |" in text
    assert "| mlp.up_proj | 1 |" in text


def test_bad_input_is_one_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        (("--receipt", "none.json"), "does not exist"),
        (("--eval", "none.json"), "does not exist"),
        (("--benchmark", "x"), "is no data set of the hub"),
    ):
        code, _, stderr = run(*arguments)
        assert code == 2
        assert said in stderr
    code, _, stderr = in_process(monkeypatch, capfd, "card")("nowhere")
    assert code == 2
    assert "nowhere is no folder" in stderr
