"""The lists that come with the package."""

from __future__ import annotations

import json
import lzma
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint.draft_vocab_file import parse_draft_vocab, shipped_for
from gptq_hybrid.checkpoint.vocabulary import Vocabulary
from gptq_hybrid.draft_vocab import Counts, _build, make_draft_vocab

LISTS = sorted((files("gptq_hybrid") / "draft_vocab" / "lists").iterdir(), key=lambda entry: entry.name)
# Of Qwen3.5 and 3.6: 248,044 learned tokens; ids that other public sources give for them.
QWEN3_5 = Vocabulary("2d4f583019164ddec0f3656c1457f467c1462e370046c36e026e4c5ee3767352", 248_044, {})
IM_END, END_OF_TEXT, THINK, THINK_END, CALL, CALL_END = 248046, 248044, 248068, 248069, 248058, 248059


@pytest.mark.parametrize("entry", LISTS, ids=lambda entry: entry.name)
def test_a_list_is_whole_small_and_named_by_its_tokenizer(entry: Any) -> None:
    raw = entry.read_bytes()
    shipped = parse_draft_vocab(entry.name, json.loads(lzma.decompress(raw)))
    assert entry.name.endswith(f"-{shipped.tokenizer[:12]}.json.xz")
    assert len(raw) < 300_000
    assert list(shipped.coverage.values()) == sorted(shipped.coverage.values())


def test_the_27b_has_one_and_it_begins_with_what_replies_must_be_able_to_end_with() -> None:
    shipped = shipped_for(QWEN3_5, 248_320)
    assert shipped is not None
    assert len(shipped.ranked) == 65_536
    assert set(shipped.ids(6)) == {IM_END, END_OF_TEXT, THINK, THINK_END, CALL, CALL_END}
    assert len(shipped.ids(248_320)) == 248_320


def test_another_tokenizer_or_size_has_none() -> None:
    assert shipped_for(Vocabulary("0" * 64, 248_044, {}), 248_320) is None
    assert shipped_for(QWEN3_5, 151_936) is None


def test_a_short_text_is_blended_with_the_list_of_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 248_320, "eos_token_id": IM_END}))
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(_build, "read_vocabulary", lambda files: QWEN3_5)
    rare = 200_000
    counts = Counts(248_320)
    counts.add([[rare] * 5000, [rare, 11] * 2000], None)
    made = make_draft_vocab(tmp_path, counts, {})
    shipped = shipped_for(QWEN3_5, 248_320)
    assert shipped is not None
    assert rare in made.ids(100)
    assert rare not in shipped.ids(20_000)
    # What the short text lacks keeps the shipped order behind it.
    others = [i for i in made.ranked if i not in (rare, 11, IM_END)]
    assert others == [i for i in shipped.ranked if i not in (rare, 11, IM_END)]
    assert make_draft_vocab(tmp_path, counts, {}, blend=False).ranked == (IM_END, rare, 11)
