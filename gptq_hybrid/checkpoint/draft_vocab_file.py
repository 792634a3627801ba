"""``draft_vocab.json``: the tokens of a tokenizer by how often replies use them, most frequent first.

A draft head that computes logits for the first N of them alone does the work of N rows of the output head, not of
all. What it cannot propose is drafted wrong and put right by verification, so the list decides speed, never text.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files as package_files
from itertools import islice
from pathlib import Path
from typing import Any

from gptq_hybrid.common.atomic import write_text_atomic
from gptq_hybrid.common.errors import CheckpointError

from .files import Files, LocalFiles
from .json_files import fetch_json_object, read_json_object
from .vocabulary import Vocabulary, read_vocabulary

DRAFT_VOCAB_FILE = "draft_vocab.json"
FORMAT = 1
_PER_LINE = 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMEDY = "Make it anew: qwen36 draft-vocab CHECKPOINT."


@dataclass(frozen=True, slots=True)
class DraftVocab:
    """Token ids, most frequent first.

    Attributes:
        tokenizer: :attr:`Vocabulary.sha256` of the tokenizer whose ids these are.
        vocab_size: the model's, padding included: ids are below it.
        ranked: the ids that were counted, those that end a reply or open a block of it before all; distinct.
        coverage: by N, the share (0 to 1) of tokens of held-out text that the first N ids hold.
        source: what was counted, for people; JSON.
    """

    tokenizer: str
    vocab_size: int
    ranked: tuple[int, ...]
    coverage: Mapping[int, float]
    source: Mapping[str, Any]

    def ids(self, n: int) -> list[int]:
        """The first ``n`` ids (all, if there are fewer): those counted, then the others from 0 on.

        A BPE id is the rank of its merge, so of tokens nobody saw the lower ids are the commoner ones.

        Raises:
            ValueError: ``n`` is not above 0.
        """
        if n <= 0:
            raise ValueError(f"a draft vocabulary of {n} tokens")
        return list(islice(self._all(), n))

    def _all(self) -> Iterator[int]:
        yield from self.ranked
        counted = frozenset(self.ranked)
        yield from (i for i in range(self.vocab_size) if i not in counted)

    @property
    def summary(self) -> str:
        """How many tokens are ranked, and what the first N hold, in a line."""
        sizes = [n for n in self.coverage if n < self.vocab_size][-3:]
        held = ", ".join(f"{n:,} hold {self.coverage[n]:.1%}" for n in sizes)
        ranked = f"{len(self.ranked):,} of {self.vocab_size:,} tokens ranked"
        return f"{ranked}; of held-out text the first {held}" if held else ranked

    def as_text(self) -> str:
        """The JSON of ``draft_vocab.json``, ids in short lines at its end."""
        head = {
            "format": FORMAT,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "source": dict(self.source),
            "coverage": {str(n): share for n, share in self.coverage.items()},
        }
        lines = [
            "    " + ", ".join(map(str, self.ranked[at : at + _PER_LINE]))
            for at in range(0, len(self.ranked), _PER_LINE)
        ]
        text = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}")
        return text + ',\n  "ids": [\n' + ",\n".join(lines) + "\n  ]\n}\n"


def write_draft_vocab(path: Path, vocab: DraftVocab) -> None:
    """Write ``vocab`` to the file ``path``: temporary name, fsync, rename."""
    write_text_atomic(path, vocab.as_text())


def read_draft_vocab(folder: str | Path, *, file: str | Path | None = None) -> DraftVocab | None:
    """The draft vocabulary of a checkpoint folder; None where it has none.

    Args:
        folder: the checkpoint; its tokenizer and ``config.json`` are what the list must fit.
        file: a list elsewhere to read instead, which must be there.

    Raises:
        CheckpointError: the file is broken, or belongs to another tokenizer or model.
    """
    checkpoint = LocalFiles(Path(folder))
    path = Path(folder, DRAFT_VOCAB_FILE) if file is None else Path(file)
    if file is None and not path.exists():
        return None
    found = parse_draft_vocab(str(path), read_json_object(path))
    refuse_foreign(str(path), found, read_vocabulary(checkpoint), vocab_size_of(checkpoint))
    return found


def shipped_draft_vocab(folder: str | Path) -> DraftVocab | None:
    """The list that comes with this package for the tokenizer of ``folder``; None where there is none.

    Raises:
        CheckpointError: the folder's tokenizer or config cannot be read.
    """
    checkpoint = LocalFiles(Path(folder))
    return shipped_for(read_vocabulary(checkpoint), vocab_size_of(checkpoint))


def find_draft_vocab(folder: str | Path) -> DraftVocab | None:
    """The checkpoint's own list, else the one that ships for its tokenizer, else None.

    Raises:
        CheckpointError: as :func:`read_draft_vocab`.
    """
    return read_draft_vocab(folder) or shipped_draft_vocab(folder)


def shipped_for(vocabulary: Vocabulary, vocab_size: int) -> DraftVocab | None:
    """The list that comes with this package for a tokenizer; ``vocab_size`` is the model's."""
    for entry in (package_files("gptq_hybrid") / "draft_vocab" / "lists").iterdir():
        if entry.name.endswith(f"-{vocabulary.sha256[:12]}.json.xz"):
            found = parse_draft_vocab(entry.name, json.loads(lzma.decompress(entry.read_bytes())))
            if found.tokenizer == vocabulary.sha256 and found.vocab_size == vocab_size:
                return found
    return None


def vocab_size_of(files: Files) -> int:
    """``vocab_size`` of ``config.json``: rows of the output head.

    Raises:
        CheckpointError: it has none.
    """
    config = fetch_json_object(files, "config.json")
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size")
    if type(size) is not int or size <= 0:
        raise CheckpointError(f"{files.location.rstrip('/')}/config.json", "has no `vocab_size`")
    return size


def refuse_foreign(where: str, found: DraftVocab, vocabulary: Vocabulary, vocab_size: int) -> None:
    """Raise if ``found`` is not for this tokenizer and model.

    Raises:
        CheckpointError: it is not.
    """
    if found.tokenizer != vocabulary.sha256:
        raise CheckpointError(
            where,
            f"belongs to another tokenizer (its vocabulary is {found.tokenizer[:12]}…, this checkpoint's "
            f"{vocabulary.sha256[:12]}…)",
            remedy=_REMEDY,
        )
    if found.vocab_size != vocab_size:
        raise CheckpointError(
            where, f"is for {found.vocab_size} ids, this model has {vocab_size}", remedy=_REMEDY
        )


def parse_draft_vocab(where: str, content: Mapping[str, Any]) -> DraftVocab:
    """A draft vocabulary from the JSON of its file; ``where`` is what messages call that.

    Raises:
        CheckpointError: it is of another format, or its ids are not distinct ids of the vocabulary.
    """

    def refuse(what: str, remedy: str = _REMEDY) -> CheckpointError:
        return CheckpointError(where, what, remedy=remedy)

    if content.get("format") != FORMAT:
        raise refuse(
            f"has format {content.get('format')!r}; this version knows {FORMAT}",
            "Upgrade this package, or make it anew: qwen36 draft-vocab CHECKPOINT.",
        )
    tokenizer, size, ids = (content.get(key) for key in ("tokenizer", "vocab_size", "ids"))
    if not isinstance(tokenizer, str) or not _SHA256.fullmatch(tokenizer):
        raise refuse("`tokenizer` is not a SHA-256 in hexadecimal")
    if type(size) is not int or size <= 0:
        raise refuse("`vocab_size` is not a whole number above 0")
    if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
        raise refuse("`ids` is not a list of token ids")
    if not 0 <= min(ids) <= max(ids) < size:
        wrong = next(i for i in ids if not 0 <= i < size)
        raise refuse(f"`ids` holds {wrong}, which is no id of a vocabulary of {size}")
    if len(set(ids)) != len(ids):
        raise refuse(f"`ids` holds {_first_repeated(ids)} twice")
    coverage, source = content.get("coverage", {}), content.get("source", {})
    if not isinstance(coverage, dict) or not all(
        re.fullmatch(r"[1-9][0-9]{0,8}", n) and isinstance(share, int | float) and 0 <= share <= 1
        for n, share in coverage.items()
    ):
        raise refuse("`coverage` is not a share from 0 to 1 by number of tokens")
    if not isinstance(source, dict):
        raise refuse("`source` is not an object")
    shares = {int(n): float(share) for n, share in coverage.items()}
    return DraftVocab(tokenizer, size, tuple(ids), dict(sorted(shares.items())), source)


def _first_repeated(ids: list[int]) -> int:
    seen: set[int] = set()
    for i in ids:
        if i in seen:
            return i
        seen.add(i)
    raise ValueError("no id is repeated")
