"""What the first N tokens of a list hold of text that it was not counted from, in the same domain and in others.

    python -m bench.draft_vocab.measure      # of the small model: mini.json

Lists are counted from one group of domains, from all others, and from all; a group weighs what `WEIGHTS` says
whatever its texts' size, and so do the domains in it, equally.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bench.arguments import command_line
from bench.results import Json, save
from gptq_hybrid.calibration import jsonl_files, read_jsonl
from gptq_hybrid.calibration.encode import encode_row
from gptq_hybrid.checkpoint.draft_vocab_file import read_vocab_size
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.checkpoint.vocabulary import read_vocabulary
from gptq_hybrid.draft_vocab import SIZES, Counts, ReplyMarks, first_tokens, rank, shares

# Groups of domains, for tables. What is in none of them stands for itself.
GROUPS = {
    "English": ("en",),
    "chat": ("chat",),
    "code": ("python", "c", "cpp", "go", "rust", "java"),
    "European": ("de", "fr", "es", "pl", "ru"),
    "Chinese, Japanese, Korean": ("zh", "ja"),
}
_BENCH = Path(__file__).parents[1]
CHECKPOINT = _BENCH / "mini" / "checkpoint"
_BATCH = 2048
_MOST = 1 << 20  # tokens of a document; none is longer
# A judgement about what such models write, as the weights of mix:broad are.
WEIGHTS = {"English": 4.0, "chat": 2.0, "code": 3.0, "European": 1.5, "Chinese, Japanese, Korean": 1.5}

ByDomain = dict[str, Counts]
Shares = dict[int, float]


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
    counts: dict[str, Counts] = {}
    for path in paths:
        for file in jsonl_files(path):
            rows = read_jsonl(file)
            while batch := list(islice(rows, _BATCH)):
                by_domain: dict[str, list[list[int]]] = {}
                for row, ids in zip(batch, _encoded(batch, tokenizer), strict=True):
                    by_domain.setdefault(row["domain"], []).append(ids)
                for domain, documents in by_domain.items():
                    counts.setdefault(domain, Counts(vocab_size)).add(documents, marks)
    return counts


def _encoded(rows: list[dict[str, Any]], tokenizer: Any) -> Iterator[list[int]]:
    if all("text" in row for row in rows):
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(
            [r["text"] for r in rows], add_special_tokens=False
        )
        yield from (encoding.ids for encoding in encodings)
        return
    yield from (encode_row(row, tokenizer, _MOST) for row in rows)


def mixed(by_domain: ByDomain, groups: Sequence[str]) -> Counts:
    """One `Counts` of `groups`, by weight."""
    parts = []
    for group in groups:
        domains = [domain for domain in GROUPS[group] if domain in by_domain]
        parts += [(by_domain[domain], WEIGHTS[group] / len(domains)) for domain in domains]
    return Counts.mixed(parts)


def rounded(by_size: Shares) -> Shares:
    return {n: round(share, 5) for n, share in by_size.items()}


def measure(counted: ByDomain, heldout: ByDomain, first: Sequence[int]) -> Json:
    """Tokens, and shares by what was counted, what was measured on, and N."""
    there = [group for group in GROUPS if any(domain in counted for domain in GROUPS[group])]
    lists = {group: mixed(counted, [group]) for group in there}
    lists |= {f"all but {group}": mixed(counted, [g for g in there if g != group]) for group in there}
    lists["all"] = mixed(counted, there)
    on = {group: mixed(heldout, [group]).total for group in there} | {"all": mixed(heldout, there).total}
    return {
        "tokens": {
            name: sum(c.tokens for c in of.values())
            for name, of in (("counted", counted), ("held out", heldout))
        },
        "groups": {
            name: {group: rounded(shares(rank(counts.total, first), held)) for group, held in on.items()}
            for name, counts in lists.items()
        },
    }


def main() -> None:
    """Command line."""
    command_line(__doc__).parse_args()
    tokenizer, size = load_tokenizer(CHECKPOINT), read_vocab_size(LocalFiles(CHECKPOINT))
    counted = count_by_domain([_BENCH / "quality" / "calibration.jsonl.xz"], tokenizer, size)
    heldout = count_by_domain([_BENCH / "mini" / "heldout"], tokenizer, size)
    content: Json = {
        "tokenizer": read_vocabulary(LocalFiles(CHECKPOINT)).sha256,
        "vocab_size": size,
        "sizes": [n for n in SIZES if n <= size],
    }
    save(Path(__file__).with_name("mini.json"), content | measure(counted, heldout, first_tokens(CHECKPOINT)))


if __name__ == "__main__":
    main()
