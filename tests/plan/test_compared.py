"""The record of what vLLM's releases log is what is computed today."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.results import Json, load
from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.memory import CPU_ALIGNMENT

from .compare import checkpoint_27b, narrow_27b, planned, settings

BENCH = Path(__file__).parents[2] / "bench"
RESULT = load(BENCH / "plan" / "compare.json")
assert RESULT is not None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(checkpoint_27b(tmp_path_factory.mktemp("27b")))


@pytest.mark.parametrize("release", sorted(RESULT["inside"]))
def test_tokens_of_every_setting_are_within_2_per_cent_of_what_is_logged(
    checkpoint: Checkpoint, release: str
) -> None:
    rows: list[Json] = RESULT["inside"][release]
    asked = settings()
    assert [{name: row[name] for name in asked[0]} for row in rows] == asked
    logged = [row for row in rows if "tokens" in row]
    old = release.startswith("0.19")
    assert len(logged) >= (15 if old else 40)
    for row in logged:
        layout = planned(checkpoint, row, row["bytes"])
        assert row["bytes"] // layout.block_bytes == row["blocks"]
        tokens = row["planned_one_group"] if old else layout.reported_tokens(row["bytes"], row["length"])
        assert tokens == pytest.approx(row["tokens"], rel=0.02)


def test_a_narrow_model_has_the_caches_of_the_27b(checkpoint: Checkpoint, tmp_path: Path) -> None:
    narrow_27b(tmp_path)
    narrow = Checkpoint.open(tmp_path)
    for setting in settings():
        assert planned(narrow, setting, 0).block_bytes == planned(checkpoint, setting, 0).block_bytes


@pytest.mark.parametrize("name", sorted(RESULT["engines"]))
def test_real_engines_ran_as_many_requests_as_planned_and_no_more(checkpoint: Checkpoint, name: str) -> None:
    gpu = "GPU" in name
    opened = checkpoint if gpu else Checkpoint.open(BENCH / "mini" / "checkpoint")
    for row in RESULT["engines"][name]:
        layout = planned(opened, row, row["bytes"], 16 if gpu else CPU_ALIGNMENT)
        assert layout.reported_tokens(row["bytes"], row["length"]) == pytest.approx(row["tokens"], rel=0.02)
        assert layout.at_once(row["bytes"], row["request"]) == row["batch"] == row["as_planned"]["running"]
        assert row["as_planned"]["put_off"] == 0
        over = row["one_more"]["running"] - row["one_more"]["put_off"] - row["batch"]
        # With prefix caching a prompt that is read has states beside those of its request: one more may run once
        # none is.
        assert over in ((0, 1) if row["prefix"] else (0,))


@pytest.mark.parametrize("row", RESULT["gpu"], ids=lambda row: f"{row['what']} {row['kv']}")
def test_what_a_gpu_logged_is_what_its_gib_give(checkpoint: Checkpoint, row: Json) -> None:
    layout = planned(checkpoint, row, 0)
    # The log rounds to hundredths.
    least, most = (
        layout.reported_tokens(int((row["gib"] + off) * 2**30), row["length"]) for off in (-0.005, 0.005)
    )
    assert least <= row["tokens"] <= most
    assert row["planned"] == pytest.approx(row["tokens"], rel=0.02)
