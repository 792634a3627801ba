"""What the first N tokens of a list hold of text that it was not counted from, in the same domain and in others.

    python -m bench.draft_vocab.measure bench/mini/checkpoint --counted bench/quality/calibration.jsonl.xz \\
        --heldout bench/mini/heldout --out bench/draft_vocab/mini.json
    python -m bench.draft_vocab.measure WORK/qwen3.5 --counted WORK/corpus/train --heldout WORK/corpus/heldout \\
        WORK/corpus/spare --small bench/quality/calibration.jsonl.xz --out bench/draft_vocab/qwen3.5.json \\
        --write gptq_hybrid/draft_vocab/lists

Lists are counted from one group of domains, from all others, and from all; a group weighs what `WEIGHTS` says
whatever its texts' size, and so do the domains in it, equally. `--small` is a text of a calibration's size: its
list alone, and blended with the one from `--counted`, as `qwen36 draft-vocab` blends with the list that ships.
`--write` puts the list of all into a folder as package data.
"""

from __future__ import annotations

import argparse
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.results import Json, save
from gptq_hybrid.calibration._encode import encode_row
from gptq_hybrid.calibration._files import jsonl_files, read_jsonl
from gptq_hybrid.checkpoint import DraftVocab
from gptq_hybrid.checkpoint._draft_vocab import vocab_size_of
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.draft_vocab import (
    PRIOR_TOKENS,
    SIZES,
    Counts,
    ReplyMarks,
    expected,
    first_tokens,
    make_draft_vocab,
    rank,
    shares,
)

# Groups of domains, for tables. What is in none of them stands for itself.
GROUPS = {
    "English": ("en",),
    "chat": ("chat",),
    "code": ("python", "c", "cpp", "go", "rust", "java"),
    "European": ("de", "fr", "es", "pl", "ru"),
    "Chinese, Japanese, Korean": ("zh", "ja"),
}
_BATCH = 2048
_MOST = 1 << 20  # tokens of a document; none is longer
# A judgement about what such models write, as the weights of mix:broad are.
WEIGHTS = {"English": 4.0, "chat": 2.0, "code": 3.0, "European": 1.5, "Chinese, Japanese, Korean": 1.5}
KEEP = 65_536
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]

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


def small(large: Sequence[int], counted: ByDomain, heldout: ByDomain, first: Sequence[int]) -> Json:
    """Shares of a short text's list alone, blended with the list `large` as `draft-vocab` does, and of `large`.

    By the group the short text is of: on that group, and on all.
    """
    there = [group for group in GROUPS if any(domain in counted for domain in GROUPS[group])]
    everything = mixed(heldout, there).total
    by_group: Json = {}
    for name in ("all", *there):
        groups = there if name == "all" else [name]
        counts = mixed(counted, groups)
        own = counts.total * (counts.tokens / counts.total.sum())
        prior = expected(large, len(own), PRIOR_TOKENS)
        lists = {"alone": rank(own, first), "blended": rank(own + prior, first), "large": large}
        held = {"own": mixed(heldout, groups).total, "all": everything}
        by_group[name] = {
            "tokens": counts.tokens,
            "distinct": int(np.count_nonzero(own)),
            **{kind: {on: rounded(shares(ids, c)) for on, c in held.items()} for kind, ids in lists.items()},
        }
    return by_group


def write_list(folder: Path, name: str, vocab: DraftVocab) -> Path:
    """Write package data; returns the file."""
    path = folder / f"{name}-{vocab.tokenizer[:12]}.json.xz"
    path.write_bytes(lzma.compress(vocab.as_text().encode(), filters=_XZ))
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", type=Path, help="folder with tokenizer.json and config.json")
    parser.add_argument("--counted", type=Path, nargs="+", required=True)
    parser.add_argument("--heldout", type=Path, nargs="+", required=True)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    folder: Path = args.tokenizer
    tokenizer, size = load_tokenizer(folder), vocab_size_of(LocalFiles(folder))
    counted = count_by_domain(args.counted, tokenizer, size)
    heldout = count_by_domain(args.heldout, tokenizer, size)
    everything = list(GROUPS)
    total = mixed(counted, [g for g in everything if any(d in counted for d in GROUPS[g])])
    source = {
        "texts": [
            "documentation, code and conversations made from them, of the packages of Debian and PyPI that "
            "bench/mini/corpus.json lists, made anew by bench.mini.corpus"
        ],
        "weights": WEIGHTS,
        "domains": {d: {"documents": c.documents, "tokens": c.tokens} for d, c in sorted(counted.items())},
    }
    vocab = make_draft_vocab(folder, total, source, blend=False, keep=KEEP)
    first = first_tokens(folder)
    sizes = [n for n in SIZES if n <= size]
    content: Json = {"tokenizer": vocab.tokenizer, "vocab_size": size, "sizes": sizes}
    content |= measure(counted, heldout, first)
    if args.small:
        parts = count_by_domain([args.small], tokenizer, size)
        content["small"] = small(vocab.ranked, parts, heldout, first)
    save(args.out, content)
    if args.write:
        shown = content["groups"]["all"]["all"]
        kept = replace(
            vocab,
            coverage=shown,
            source={
                **vocab.source,
                "held_out": "documents of other files, of the same packages, by the same weights",
            },
        )
        path = write_list(args.write, folder.name, kept)
        print(f"{path}: {len(kept.ranked)} ids, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
