"""Packed rows, and the manifest that says what a checkpoint was calibrated on."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptq_hybrid.calibration import load_calibration
from gptq_hybrid.calibration._pack import end_of_text, pack_rows
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint

END = 0


@pytest.fixture(scope="module")
def tokenizer(original: DemoCheckpoint) -> Any:
    return AutoTokenizer.from_pretrained(original.path)


@given(st.lists(st.integers(1, 40), max_size=30))
def test_packing_keeps_every_document_whole_and_rows_within_the_length(lengths: list[int]) -> None:
    documents = [[number + 1] * length for number, length in enumerate(lengths)]
    rows = pack_rows(documents, 40, END)
    assert all(len(row) <= 40 for row in rows)
    pieces = [piece for row in rows for piece in _split(row)]
    assert sorted(pieces) == sorted(documents)
    # First fit leaves at most one row that is not more than half full.
    assert sum(len(row) + 1 <= 20 for row in rows) <= 1


def _split(row: list[int]) -> list[list[int]]:
    pieces: list[list[int]] = [[]]
    for token in row:
        if token == END:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces


def test_packed_rows_are_nearly_full_and_counted_in_tokens(tokenizer: Any) -> None:
    calibration = load_calibration("demo", tokenizer, samples=20, max_length=512, pack=True)
    lengths = sorted(len(row["input_ids"]) for row in calibration.rows)
    documents = sum(domain["tokens"] for domain in calibration.manifest["domains"].values())
    assert 20 * 512 <= documents < 21 * 512
    assert 20 <= len(lengths) <= 22
    # Documents are whole, and which there are depends on the documentation of the Python that runs.
    assert lengths[len(lengths) // 4] > 0.85 * 512
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    joined = sum(row["input_ids"].count(end) for row in calibration.rows)
    assert joined == calibration.manifest["domains"]["demo"]["documents"] - len(calibration.rows)
    assert all(row["attention_mask"] == [1] * len(row["input_ids"]) for row in calibration.rows)


def test_the_token_between_documents() -> None:
    class Tokenizer:
        eos_token_id: int | None = 7

        def get_vocab(self) -> dict[str, int]:
            return {"a": 1}

    assert end_of_text(Tokenizer()) == 7
    Tokenizer.eos_token_id = None
    with pytest.raises(HybridError, match="no end-of-text token"):
        end_of_text(Tokenizer())


def test_the_manifest_can_be_checked_against_the_rows_and_names_no_folder(
    tmp_path: Path, tokenizer: Any, original: DemoCheckpoint
) -> None:
    text = [f'{{"text": "row {n} of some length, and then some more", "licence": "MIT"}}\n' for n in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(text))
    toml = '[[part]]\nname = "docs"\nsource = "a.jsonl"\nweight = 2\ntemplate = {enable_thinking = false}\n'
    (tmp_path / "my.toml").write_text(toml + '[[part]]\nname = "talk"\nsource = "demo"\nlicence = "PSF"\n')
    calibration = load_calibration(str(tmp_path / "my.toml"), tokenizer, samples=9, max_length=128, seed=3)
    manifest = json.loads(json.dumps(calibration.manifest))
    ids = [row["input_ids"] for row in calibration.rows]
    digest = sha256(
        b"".join(struct.pack("<I", len(r)) + b"".join(struct.pack("<I", t) for t in r) for r in ids)
    )
    assert manifest["sha256"] == digest.hexdigest()
    assert (manifest["rows"], manifest["tokens"]) == (9, sum(map(len, ids)))
    assert {k: manifest[k] for k in ("calibration", "samples", "max_length", "seed", "pack")} == {
        "calibration": "my.toml", "samples": 9, "max_length": 128, "seed": 3, "pack": False,
    }  # fmt: skip
    docs, talk = manifest["sources"]
    assert docs["sha256"] == sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()
    assert docs.items() >= {"domain": "docs", "source": "a.jsonl", "weight": 2}.items()
    assert docs["template"] == {"enable_thinking": False}
    assert talk == {"domain": "talk", "source": "demo", "weight": 1.0, "licence": "PSF"}
    assert manifest["domains"]["docs"]["licences"] == ["MIT"]
    file = (original.path / "tokenizer.json").read_bytes()
    assert manifest["tokenizer"]["tokenizer.json"] == sha256(file).hexdigest()
    assert {"transformers", "tokenizers"} <= manifest["versions"].keys()
    assert str(tmp_path) not in json.dumps(manifest)
    assert load_calibration(str(tmp_path), tokenizer, samples=2).manifest["calibration"] == tmp_path.name


def test_one_changed_row_changes_the_manifest(tmp_path: Path, tokenizer: Any) -> None:
    def manifest(text: str) -> dict[str, Any]:
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": text * 20}) + "\n")
        return load_calibration(str(tmp_path / "a.jsonl"), tokenizer, samples=5).manifest

    first, again, other = manifest("one "), manifest("one "), manifest("two ")
    assert first == again
    assert first["sha256"] != other["sha256"]
    assert first["domains"]["a"]["sha256"] != other["domains"]["a"]["sha256"]


def test_the_manifest_is_saved_with_the_checkpoint(quantized: Callable[..., Any], tmp_path: Path) -> None:
    model = quantized("static").model
    assert not (quantized("static").path / "calibration.json").exists()
    manifest = load_calibration("demo", model.tokenizer, samples=4, max_length=64).manifest
    model.calibration_manifest = manifest
    try:
        model.save(str(tmp_path / "again"))
    finally:
        model.calibration_manifest = None
    assert json.loads((tmp_path / "again" / "calibration.json").read_text()) == manifest
