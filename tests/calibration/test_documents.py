"""Evaluation documents: which are read, under which domain, and that a key names one of them."""

from __future__ import annotations

import json
import lzma
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.calibration import Document, LeftOut, encode_documents, load_documents
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint

CHAT = [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": "Scattering."}]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tokenizer(original: DemoCheckpoint) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(original.path)


def test_the_domain_is_the_rows_own_or_the_files_name(tmp_path: Path) -> None:
    write(tmp_path / "go.jsonl", {"text": "package main"}, {"text": "let x", "domain": "rust"})
    write(tmp_path / "chat.jsonl", {"messages": CHAT, "note": 1})
    assert load_documents([str(tmp_path)]) == [
        Document("chat", {"messages": CHAT}),
        Document("go", {"text": "package main"}),
        Document("rust", {"text": "let x"}),
    ]
    assert load_documents([str(tmp_path / "go.jsonl")])[0].domain == "go"


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    with lzma.open(tmp_path / "de.jsonl.xz", "wt") as handle:
        handle.write('{"text": "Guten Tag"}\n')
    assert load_documents([str(tmp_path / "de.jsonl.xz")]) == [Document("de", {"text": "Guten Tag"})]


def test_a_text_that_comes_twice_is_one_document(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"text": "One  text,\nsaid once."}, {"text": "Another."})
    second = write(tmp_path / "b.jsonl", {"text": "one text, said ONCE."})
    assert [d.domain for d in load_documents([str(first), str(second)])] == ["a", "a"]


def test_a_limit_counts_by_domain_and_does_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    rows = [{"text": f"document {n}", "domain": "ab"[n % 2]} for n in range(40)]
    forward = load_documents([str(write(tmp_path / "f.jsonl", *rows))], limit=5)
    backward = load_documents([str(write(tmp_path / "b.jsonl", *reversed(rows)))], limit=5)
    assert [d.domain for d in forward].count("a") == [d.domain for d in forward].count("b") == 5
    assert forward == backward[::-1]
    other = load_documents([str(tmp_path / "f.jsonl")], limit=5, seed=1)
    assert {d.row["text"] for d in other} != {d.row["text"] for d in forward}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", {"text": "fine"}, {"words": 3})
    with pytest.raises(HybridError, match=r"x\.jsonl: line 2 has neither"):
        load_documents([str(tmp_path / "x.jsonl")])
    with pytest.raises(HybridError, match="does not exist"):
        load_documents([str(tmp_path / "y.jsonl")])
    (tmp_path / "z.jsonl").touch()
    with pytest.raises(HybridError, match="has no documents"):
        load_documents([str(tmp_path / "z.jsonl")])


def test_rows_that_are_no_text_are_left_out_and_reported(tmp_path: Path) -> None:
    image = {"messages": [{"role": "user", "content": [{"type": "image"}]}]}
    write(tmp_path / "a.jsonl", {"text": "cut: \ud83d"}, {"text": "whole"}, image)
    left_out: list[LeftOut] = []
    documents = load_documents([str(tmp_path)], on_left_out=left_out.append)
    assert documents == [Document("a", {"text": "whole"})]
    assert [row.reason for row in left_out] == ["with_broken_text", "with_images"]
    write(tmp_path / "a.jsonl", image)
    with pytest.raises(HybridError, match=r"no row can be used; .*a\.jsonl: line 1, holds images"):
        load_documents([str(tmp_path)])


def test_token_ids_are_the_templates_and_the_key_is_theirs(tokenizer: Any) -> None:
    [encoded] = encode_documents([Document("chat", {"messages": CHAT})], tokenizer, 100)
    assert tokenizer.decode(encoded.input_ids).startswith("<|im_start|>user\nWhy is the sky blue?<|im_end|>")
    packed = b"".join(token.to_bytes(4, "little") for token in encoded.input_ids)
    assert (encoded.domain, encoded.key) == ("chat", sha256(packed).hexdigest())


def test_documents_that_differ_only_past_the_cut_are_one(tokenizer: Any) -> None:
    same = "the same words again and again " * 20
    documents = [Document("a", {"text": same + end}) for end in ("x", "y")] + [Document("a", {"text": "hi"})]
    assert len(encode_documents(documents, tokenizer, 4096)) == 2
    [cut] = encode_documents(documents, tokenizer, 32)
    assert len(cut.input_ids) == 32
