"""`draft_vocab.json`: read as it was written, refused where it is broken or another tokenizer's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import (
    DRAFT_VOCAB_FILE,
    DraftVocab,
    find_draft_vocab,
    read_draft_vocab,
    shipped_draft_vocab,
    write_draft_vocab,
)
from gptq_hybrid.checkpoint.draft_vocab_file import read_vocab_size
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.checkpoint.vocabulary import end_tokens, read_vocabulary
from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.demo.builder import DemoCheckpoint

Damaged = Callable[[Path], Path]


def made_for(folder: Path, ranked: tuple[int, ...] = (5, 3, 7)) -> DraftVocab:
    files = LocalFiles(folder)
    return DraftVocab(
        read_vocabulary(files).sha256,
        read_vocab_size(files),
        ranked,
        {4: 0.25, 1024: 0.9},
        {"texts": ["a – b"]},
    )


@pytest.fixture
def folder(original: DemoCheckpoint, damaged: Damaged) -> Path:
    """A private checkpoint with a draft vocabulary of 300 ids."""
    copy = damaged(original.path)
    write_draft_vocab(copy / DRAFT_VOCAB_FILE, made_for(copy, tuple(range(300, 600))))
    return copy


def edit(folder: Path, **changes: Any) -> None:
    path = folder / DRAFT_VOCAB_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_was_written_is_read(folder: Path) -> None:
    assert read_draft_vocab(folder) == made_for(folder, tuple(range(300, 600)))
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_no_file_is_no_error(original: DemoCheckpoint) -> None:
    assert read_draft_vocab(original.path) is None
    assert shipped_draft_vocab(original.path) is None
    assert find_draft_vocab(original.path) is None


def test_a_file_elsewhere_is_read_for_the_checkpoint(
    original: DemoCheckpoint, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.json").write_bytes((folder / DRAFT_VOCAB_FILE).read_bytes())
    assert read_draft_vocab(original.path, file=tmp_path / "mine.json") == read_draft_vocab(folder)
    with pytest.raises(CheckpointError, match=r"none\.json: does not exist"):
        read_draft_vocab(original.path, file=tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format 2"),
        ({"tokenizer": "abc"}, "SHA-256"),
        ({"tokenizer": "0" * 64}, "another tokenizer"),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": 601}, "this model has"),
        ({"ids": []}, "not a list of token ids"),
        ({"ids": [1, 2.0]}, "not a list of token ids"),
        ({"ids": [1, True]}, "not a list of token ids"),
        ({"ids": {"1": 1}}, "not a list of token ids"),
        ({"ids": [1, -1]}, "-1, which is not an id"),
        ({"ids": [4, 9_999_999]}, "9999999, which is not an id"),
        ({"ids": [4, 8, 4]}, "holds 4 twice"),
        ({"coverage": {"1024": 1.5}}, "coverage"),
        ({"coverage": {"many": 0.5}}, "coverage"),
        ({"coverage": [0.5]}, "coverage"),
        ({"source": "text"}, "source"),
    ],
)
def test_a_broken_or_foreign_file_is_refused_by_name_and_with_what_to_run(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=words) as refused:
        read_draft_vocab(folder)
    assert DRAFT_VOCAB_FILE in refused.value.message
    assert "qwen36 draft-vocab" in (refused.value.remedy or "")


def test_a_file_that_is_cut_is_refused(folder: Path) -> None:
    path = folder / DRAFT_VOCAB_FILE
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_draft_vocab(folder)


def test_another_token_or_another_id_is_another_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    first, second = list(content["model"]["vocab"])[-2:]
    vocab = content["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="another tokenizer"):
        read_draft_vocab(folder)


def test_a_tokenizer_that_was_only_written_anew_is_the_same(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = dict(sorted(vocab.items()))
    size = max([*vocab.values(), *(token["id"] for token in content["added_tokens"])]) + 1
    content["added_tokens"].append({**content["added_tokens"][-1], "id": size, "content": "<|mine|>"})
    path.write_text(json.dumps(content, indent=4))
    assert read_draft_vocab(folder) is not None


def test_vocabulary_of_the_slow_tokenizer_is_that_of_the_fast_one(folder: Path) -> None:
    fast = read_vocabulary(LocalFiles(folder))
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "tokenizer.json").unlink()
    slow = read_vocabulary(LocalFiles(folder))
    assert (slow.sha256, slow.size) == (fast.sha256, fast.size)
    assert slow.added["<|im_end|>"] == fast.added["<|im_end|>"]


def test_a_tokenizer_without_a_map_is_an_error_that_names_it(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", -1.5]]}}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: holds no map"):
        read_draft_vocab(folder)


def test_end_tokens_are_those_of_the_generation_config_first(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 4]}))
    assert end_tokens(LocalFiles(folder), {"eos_token_id": 4, "text_config": {"eos_token_id": 6}}) == (
        9,
        4,
        6,
    )
