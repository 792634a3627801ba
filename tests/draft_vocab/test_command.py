"""`qwen36 draft-vocab`, and what `check` and `quantize` make of its file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.calibration import load_calibration
from gptq_hybrid.checkpoint import DRAFT_VOCAB_FILE, Checkpoint, read_draft_vocab
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check
from gptq_hybrid.draft_vocab import draft_vocab_from_rows

Run = subprocess.CompletedProcess[str]


def qwen36(*arguments: str | Path) -> Run:
    command = [str(Path(sys.executable).with_name("qwen36")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def folder(original: DemoCheckpoint, damaged: Callable[[Path], Path]) -> Path:
    """A private copy of the constructed checkpoint."""
    return damaged(original.path)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Conversations whose replies are all of one word, and whose questions never use it."""
    path = tmp_path / "texts.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Please say something about number {i}, and at some length."},
                {"role": "assistant", "content": "token " * (i + 5)},
            ]
        }
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_list_is_written_into_the_checkpoint_and_check_says_so(folder: Path, texts: Path) -> None:
    assert f"no {DRAFT_VOCAB_FILE}" in qwen36("check", folder).stdout
    done = qwen36("draft-vocab", folder, "--data", texts)
    assert done.returncode == 0, done.stderr
    assert "12 documents" in done.stdout
    # The constructed checkpoint has 1,024 tokens: the shortest length of a list is all of them.
    assert "leave the list out" in done.stdout
    vocab = read_draft_vocab(folder)
    assert vocab is not None
    checked = qwen36("check", folder)
    assert checked.returncode == 0
    assert f"Draft vocabulary: {vocab.summary}." in checked.stdout
    assert str(texts.parent) not in (folder / DRAFT_VOCAB_FILE).read_text()


def test_only_what_was_replied_is_in_the_list(folder: Path, texts: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    out = tmp_path / "elsewhere.json"
    done = qwen36("draft-vocab", folder, "--data", texts, "--out", out, "--json")
    printed = json.loads(done.stdout)["result"]
    assert printed["file"] == str(out)
    assert not (folder / DRAFT_VOCAB_FILE).exists()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    replied = tokenizer("token " * 9, add_special_tokens=False)["input_ids"]
    vocab = read_draft_vocab(folder, file=out)
    assert vocab is not None
    ends = {
        tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>", "<think>", "</think>")
    }
    assert set(vocab.ranked) == ends | set(replied)
    assert set(vocab.ids(len(ends))) == ends
    assert printed["source"]["counted"]["tokens_of_texts_without_roles"] == 0


def test_text_of_two_sources_is_counted_together(folder: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("Every token of this tiny hybrid model has a successor. " * 9)
    done = qwen36("draft-vocab", folder, "--data", texts, "--data", tmp_path / "more.txt", "--json")
    source = json.loads(done.stdout)["result"]["source"]
    assert [text["text"] for text in source["texts"]] == ["texts.jsonl", "more.txt"]
    assert source["counted"]["documents"] == 13
    assert source["counted"]["tokens_of_texts_without_roles"] > 0


def test_rows_that_are_no_text_stop_nothing_and_are_counted_in_the_list(folder: Path, texts: Path) -> None:
    image = {"messages": [{"role": "user", "content": [{"type": "image"}]}]}
    bad = texts.with_name("bad.jsonl")
    bad.write_text(texts.read_text() + json.dumps({"text": "cut: \ud83d"}) + "\n" + json.dumps(image) + "\n")
    done = qwen36("draft-vocab", folder, "--data", bad, "--json")
    [text] = json.loads(done.stdout)["result"]["source"]["texts"]
    assert text["left_out"].items() >= {"with_broken_text": 1, "with_images": 1}.items()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: has no config.json"),
        (["{folder}", "--data", "nothing.jsonl"], "nothing.jsonl does not exist"),
        (["{folder}", "--data", "{texts}", "--out", "no/such/folder/file.json"], "cannot be written"),
        (["{folder}", "--data", "{questions}"], "no reply to count"),
    ],
)
def test_what_cannot_be_done_is_one_error_and_writes_nothing(
    folder: Path, texts: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    question = {"messages": [{"role": "user", "content": "Is there anybody who answers this at all? " * 3}]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    names = {"folder": folder, "texts": texts, "questions": tmp_path / "questions.jsonl"}
    before = sorted(path.name for path in folder.iterdir())
    ended = qwen36("draft-vocab", *(argument.format(**names) for argument in arguments))
    assert ended.returncode == 2, ended.stdout
    assert "Traceback" not in ended.stderr
    assert words in " ".join(ended.stderr.split())
    assert sorted(path.name for path in folder.iterdir()) == before


def test_check_warns_of_another_tokenizers_list_and_still_serves(folder: Path, texts: Path) -> None:
    qwen36("draft-vocab", folder, "--data", texts)
    path = folder / DRAFT_VOCAB_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer": "0" * 64}))
    report = check(folder)
    assert report.verdict == "serves"
    vocab = [finding for finding in report.findings if finding.rule == "draft-vocab"]
    assert len(vocab) == 1
    assert "another tokenizer" in vocab[0].message
    assert str(folder) in vocab[0].remedy
    assert [f for f in check(folder, mtp=False).findings if f.rule == "draft-vocab"] == []


def test_what_was_counted_is_saved_with_the_quantized_checkpoint(
    quantized: Callable[..., Any], tmp_path: Path
) -> None:
    done = quantized("static")
    calibration = load_calibration("demo", done.model.tokenizer, samples=8, max_length=64)
    made = draft_vocab_from_rows(done.path, done.model.tokenizer, calibration.rows, [calibration.manifest])
    assert made is not None
    assert not (done.path / DRAFT_VOCAB_FILE).exists()
    done.model.draft_vocab = made
    try:
        done.model.save(str(tmp_path / "again"))
    finally:
        done.model.draft_vocab = None
    assert read_draft_vocab(tmp_path / "again") == made
    assert Checkpoint.open(tmp_path / "again").draft_vocab == made


def test_rows_without_a_reply_make_no_list(original: DemoCheckpoint) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(original.path)
    ids = tokenizer("<|im_start|>user\nIs anybody there?<|im_end|>\n", add_special_tokens=False)["input_ids"]
    manifest = {"calibration": "x", "sha256": "", "domains": {}}
    assert draft_vocab_from_rows(original.path, tokenizer, [{"input_ids": ids}], [manifest]) is None
