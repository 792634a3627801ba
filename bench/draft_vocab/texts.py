"""Texts by domain, counted: JSONL files of `{"text"}` or `{"messages"}`, whole documents, through one tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from gptq_hybrid.calibration._encode import encode_row
from gptq_hybrid.calibration._files import jsonl_files, read_jsonl
from gptq_hybrid.draft_vocab import Counts, ReplyMarks

CODE = ("python", "c", "cpp", "go", "rust", "java", "js")
# Groups of domains, for tables. What is in none of them stands for itself.
GROUPS = {
    "English": ("en",),
    "chat": ("chat",),
    "code": CODE,
    "European": ("de", "fr", "es", "pl", "ru", "it", "pt"),
    "Chinese, Japanese, Korean": ("zh", "ja", "ko"),
}
_BATCH = 2048
_MOST = 1 << 20  # tokens of a document; none is longer


def load_tokenizer(folder: Path) -> Any:
    """A transformers tokenizer of a folder with `tokenizer.json`, as that has it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    template = folder / "chat_template.jinja"
    if template.exists():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def count_by_domain(paths: list[Path], tokenizer: Any, vocab_size: int) -> dict[str, Counts]:
    """Counts of the documents of files, or folders of them, by domain."""
    marks = ReplyMarks.of(tokenizer)
    found: dict[str, Counts] = {}
    for path in paths:
        for file in jsonl_files(path):
            rows = read_jsonl(file)
            while batch := list(islice(rows, _BATCH)):
                by_domain: dict[str, list[list[int]]] = {}
                for row, ids in zip(batch, _encoded(batch, tokenizer), strict=True):
                    by_domain.setdefault(row["domain"], []).append(ids)
                for domain, documents in by_domain.items():
                    found.setdefault(domain, Counts(vocab_size)).add(documents, marks)
    return found


def _encoded(rows: list[dict[str, Any]], tokenizer: Any) -> Iterator[list[int]]:
    if all("text" in row for row in rows):
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(
            [r["text"] for r in rows], add_special_tokens=False
        )
        yield from (encoding.ids for encoding in encodings)
        return
    yield from (encode_row(row, tokenizer, _MOST) for row in rows)
