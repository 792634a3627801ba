"""Repairs of a checkpoint whose heads are packed and whose vision tower is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import MTP_FILE, Checkpoint
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check
from gptq_hybrid.doctor.repair import repair
from tests.corpus import Bases, Workshop


@pytest.fixture
def shop(bases: Bases, tmp_path: Path) -> Workshop:
    return Workshop(bases["gptq-compact"], tmp_path / "copy")


def _unindex(shop: Workshop) -> None:
    def drop(weight_map: dict[str, str]) -> None:
        for name in [name for name, file in weight_map.items() if file == MTP_FILE]:
            del weight_map[name]

    shop.index(drop)


def _serves(folder: Path) -> bool:
    return check(folder, vllm="0.32.0").verdict == "serves"


def test_an_unindexed_packed_head_is_named_with_all_its_parts(shop: Workshop) -> None:
    _unindex(shop)
    assert not _serves(shop.folder)
    repair(shop.folder)
    assert _serves(shop.folder)
    index = json.loads((shop.folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["mtp.fc.qzeros"] == MTP_FILE


def test_a_lost_packed_head_is_replaced_by_the_originals(shop: Workshop, original: DemoCheckpoint) -> None:
    _unindex(shop)
    shop.delete(MTP_FILE)
    repair(shop.folder, mtp_from=original.path)
    assert _serves(shop.folder)
    loaded = Checkpoint.open(shop.folder).loaded
    assert loaded["mtp.fc.weight"].dtype == "BF16"
    assert loaded["lm_head.qweight"].dtype == "I32"


def test_a_rule_that_leaves_a_packed_head_out_is_taken_away(shop: Workshop) -> None:
    rules = json.loads((shop.folder / "quantize_config.json").read_text())["dynamic"]
    shop.quantization(dynamic={r"-:^mtp\.": {}, **rules})
    assert not _serves(shop.folder)
    repair(shop.folder)
    assert _serves(shop.folder)
    assert json.loads((shop.folder / "quantize_config.json").read_text())["dynamic"] == rules
