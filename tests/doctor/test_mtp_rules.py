"""Every way to lose the MTP head is reported by tensor and file; a whole head passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, Checkpoint
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import Finding, check_mtp

GATE = "mtp.layers.0.mlp.gate_proj.weight"


def findings(path: Path) -> list[Finding]:
    return check_mtp(Checkpoint.open(path))


def the_one(path: Path) -> Finding:
    (finding,) = findings(path)
    assert finding.remedy
    return finding


def edit_head(path: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / MTP_FILE)
    change(tensors)
    save_file(tensors, path / MTP_FILE, metadata={"format": "pt"})


def edit_json(path: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("mtp", ["inline", "separate"])
@pytest.mark.parametrize("text_only", [False, True])
def test_a_whole_head_passes(build: Callable[..., DemoCheckpoint], mtp: str, text_only: bool) -> None:
    assert findings(build(mtp=mtp, text_only=text_only).path) == []


def test_an_unindexed_head(build: Callable[..., DemoCheckpoint]) -> None:
    finding = the_one(build(mtp="unindexed").path)
    assert (finding.rule, finding.file) == ("mtp-unindexed", MTP_FILE)
    assert "15 of 15" in finding.message
    assert "qwen36 repair" in finding.remedy


def test_a_head_without_any_index_is_read(separate: Path) -> None:
    (separate / INDEX_NAME).unlink()
    assert findings(separate) == []


def test_an_absent_head(build: Callable[..., DemoCheckpoint]) -> None:
    finding = the_one(build(mtp="none").path)
    assert finding.rule == "mtp-missing"
    assert "15 of 15" in finding.message


@pytest.mark.parametrize("name", ["mtp.fc.weight", GATE, "mtp.layers.0.self_attn.k_norm.weight"])
def test_a_head_that_lacks_one_tensor(separate: Path, name: str) -> None:
    edit_head(separate, lambda tensors: tensors.pop(name))
    finding = the_one(separate)
    assert (finding.rule, finding.tensor, finding.file) == ("mtp-missing", name, MTP_FILE)


def test_a_head_of_another_size(separate: Path) -> None:
    edit_head(separate, lambda tensors: tensors.update({GATE: tensors[GATE][:-32].contiguous()}))
    finding = the_one(separate)
    assert (finding.rule, finding.tensor) == ("mtp-shape", GATE)
    assert "[480, 256]" in finding.message
    assert "[512, 256]" in finding.message


def test_a_head_in_a_dtype_that_needs_scales(separate: Path) -> None:
    import torch

    edit_head(separate, lambda tensors: tensors.update({GATE: tensors[GATE].to(torch.float8_e4m3fn)}))
    finding = the_one(separate)
    assert (finding.rule, finding.tensor) == ("mtp-dtype", GATE)


def test_an_index_that_names_a_missing_file(separate: Path) -> None:
    (separate / MTP_FILE).unlink()
    rules = {finding.rule for finding in findings(separate)}
    assert rules == {"index-missing-file", "mtp-missing"}


def test_a_truncated_file(separate: Path) -> None:
    whole = (separate / MTP_FILE).read_bytes()
    (separate / MTP_FILE).write_bytes(whole[: len(whole) // 2])
    first = findings(separate)[0]
    assert first.rule == "shard-unreadable"
    assert "truncated" in first.message


def test_a_head_of_zeros(separate: Path) -> None:
    edit_head(separate, lambda tensors: tensors[GATE].zero_())
    finding = the_one(separate)
    assert (finding.rule, finding.tensor) == ("mtp-values", GATE)
    assert "zeros" in finding.message


def test_one_value_that_is_not_zero_is_enough(separate: Path) -> None:
    def change(tensors: dict) -> None:  # type: ignore[type-arg]
        tensors[GATE].zero_()
        tensors[GATE][300, 7] = 1.0

    edit_head(separate, change)
    assert findings(separate) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_head_with_a_non_finite_row(separate: Path, value: float) -> None:
    edit_head(separate, lambda tensors: tensors["mtp.fc.weight"][0].fill_(value))
    finding = the_one(separate)
    assert (finding.rule, finding.tensor) == ("mtp-values", "mtp.fc.weight")


def test_a_config_that_says_there_is_no_head(separate: Path) -> None:
    edit_json(separate / "config.json", lambda config: config["text_config"].update(mtp_num_hidden_layers=0))
    assert findings(separate)[0].rule == "mtp-config"


@pytest.mark.parametrize("root", [{}, {"mtp_num_hidden_layers": 1}])
def test_a_config_that_says_nothing_of_the_head_means_one_layer(separate: Path, root: dict[str, int]) -> None:
    edit_json(separate / "config.json", lambda config: config["text_config"].pop("mtp_num_hidden_layers"))
    edit_json(separate / "config.json", lambda config: config.update(root))
    assert findings(separate) == []


def test_no_head_at_the_root_counts_too(separate: Path) -> None:
    edit_json(separate / "config.json", lambda config: config.update(mtp_num_hidden_layers=0))
    assert findings(separate)[0].rule == "mtp-config"


def test_a_null_dynamic_that_crashes_vllm(separate: Path) -> None:
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": None}
    edit_json(separate / "config.json", lambda config: config.update(quantization_config=quantization))
    assert the_one(separate).rule == "mtp-dynamic-null"
