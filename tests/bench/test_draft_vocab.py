"""The figures of bench/draft_vocab: the list that ships is the one measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.draft_vocab.measure import count_by_domain, load_tokenizer, mixed
from bench.draft_vocab.report import MINI, QWEN
from bench.results import load
from gptq_hybrid.checkpoint.draft_vocab_file import shipped_for
from gptq_hybrid.checkpoint.vocabulary import Vocabulary
from gptq_hybrid.draft_vocab import rank, shares

ROOT = MINI.parents[2]


def test_the_list_that_ships_has_the_coverage_measured() -> None:
    result = load(QWEN) or {}
    shipped = shipped_for(Vocabulary(result["tokenizer"], 0, {}), result["vocab_size"])
    assert shipped is not None
    assert {str(n): share for n, share in shipped.coverage.items()} == result["groups"]["all"]["all"]


def test_the_small_models_figures_can_be_made_again() -> None:
    result = load(MINI) or {}
    tokenizer = load_tokenizer(ROOT / "bench" / "mini" / "checkpoint")
    counted = count_by_domain([ROOT / "bench" / "quality" / "calibration.jsonl.xz"], tokenizer, 8192)
    heldout = count_by_domain([ROOT / "bench" / "mini" / "heldout"], tokenizer, 8192)
    # <|im_end|>, <|endoftext|>, <think>, </think>
    ranked = rank(mixed(counted, ["chat"]).total, (8185, 8183, 8190, 8191))
    measured = shares(ranked, mixed(heldout, ["code"]).total)
    expected = result["groups"]["chat"]["code"]
    assert {str(n): pytest.approx(share, abs=1e-5) for n, share in measured.items()} == expected


def test_a_domain_weighs_the_same_whatever_its_size(tmp_path: Path) -> None:
    rows = {"de": ["ein Wort "] * 3, "fr": ["un mot différent "] * 900}
    for domain, texts in rows.items():
        lines = [json.dumps({"text": text * (at + 1)}) for at, text in enumerate(texts)]
        (tmp_path / f"{domain}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(ROOT / "bench" / "mini" / "checkpoint")
    counted = count_by_domain([tmp_path], tokenizer, 8192)
    weights = {d: mixed({d: counted[d]}, ["European"]).total.sum() for d in rows}
    both = mixed(counted, ["European"]).total
    assert weights["de"] == pytest.approx(weights["fr"])
    assert both[counted["de"].total > 0].sum() >= weights["de"] / 2
