"""``draft_vocab.json``: the tokens of a tokenizer by how often replies use them, most frequent first.

A draft head that computes logits only for the first N of them reads N channels of the output head in place of all.
Verification corrects whatever such a head cannot propose, so the list decides speed, never text.
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

from .files import Files, LocalFiles, file_label
from .json_files import fetch_json_object, read_json_object
from .vocabulary import Vocabulary, read_vocabulary

DRAFT_VOCAB_FILE = "draft_vocab.json"
FORMAT = 1
_PER_LINE = 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMEDY = "Make a new one: qwen36 draft-vocab CHECKPOINT."


@dataclass(frozen=True, slots=True)
class DraftVocab:
    """Token ids, most frequent first.

    Attributes:
        tokenizer: :attr:`Vocabulary.sha256` of the tokenizer whose ids these are.
        vocab_size: the model's, padding included; every id is below it.
        ranked: distinct ids that were counted, first of all those that end a reply or open a block of it.
        coverage: by N, the share (0 to 1) of held-out text's tokens that are among the first N ids.
        source: what was counted, for people; JSON.
    """

    tokenizer: str
    vocab_size: int
    ranked: tuple[int, ...]
    coverage: Mapping[int, float]
    source: Mapping[str, Any]

    def ids(self, n: int) -> list[int]:
        """Return the first ``n`` ids (all, if there are fewer): those counted, then the others from 0 on.

        A BPE id is the rank of its merge, so among uncounted tokens the lower ids are the commoner ones.

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
        """How many tokens are ranked, and what share the first N hold, in one line."""
        sizes = [n for n in self.coverage if n < self.vocab_size][-3:]
        shares = ", ".join(f"{n:,} hold {self.coverage[n]:.1%}" for n in sizes)
        ranked = f"{len(self.ranked):,} of {self.vocab_size:,} tokens ranked"
        return f"{ranked}; of held-out text the first {shares}" if shares else ranked

    def as_text(self) -> str:
        """Return the JSON of ``draft_vocab.json``, with the ids in short lines at its end."""
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


def write_draft_vocab(path: str | Path, vocab: DraftVocab) -> None:
    """Write ``vocab`` to the file ``path``, whole or not at all."""
    path = Path(path)
    write_text_atomic(path, vocab.as_text())


def read_draft_vocab(folder: str | Path, *, file: str | Path | None = None) -> DraftVocab | None:
    """Read the draft vocabulary of a checkpoint folder; None if it has none.

    Args:
        folder: the checkpoint, whose tokenizer and ``config.json`` the list must fit.
        file: a list elsewhere to read instead; it must exist.

    Raises:
        CheckpointError: the file is broken, or belongs to another tokenizer or model.
    """
    checkpoint = LocalFiles(Path(folder))
    path = Path(folder, DRAFT_VOCAB_FILE) if file is None else Path(file)
    if file is None and not path.exists():
        return None
    vocab = parse_draft_vocab(str(path), read_json_object(path))
    refuse_foreign(str(path), vocab, read_vocabulary(checkpoint), read_vocab_size(checkpoint))
    return vocab


def shipped_draft_vocab(folder: str | Path) -> DraftVocab | None:
    """Return the list that ships with this package for the tokenizer of ``folder``; None if there is none.

    Raises:
        CheckpointError: the folder's tokenizer or config cannot be read.
    """
    checkpoint = LocalFiles(Path(folder))
    return shipped_for(read_vocabulary(checkpoint), read_vocab_size(checkpoint))


def find_draft_vocab(folder: str | Path) -> DraftVocab | None:
    """Return the checkpoint's own list, else the one that ships for its tokenizer, else None.

    Raises:
        CheckpointError: as :func:`read_draft_vocab`.
    """
    return read_draft_vocab(folder) or shipped_draft_vocab(folder)


def shipped_for(vocabulary: Vocabulary, vocab_size: int) -> DraftVocab | None:
    """Return the list that ships with this package for a tokenizer; ``vocab_size`` is the model's."""
    for entry in (package_files("gptq_hybrid") / "draft_vocab" / "lists").iterdir():
        if entry.name.endswith(f"-{vocabulary.sha256[:12]}.json.xz"):
            vocab = parse_draft_vocab(entry.name, json.loads(lzma.decompress(entry.read_bytes())))
            if vocab.tokenizer == vocabulary.sha256 and vocab.vocab_size == vocab_size:
                return vocab
    return None


def read_vocab_size(files: Files) -> int:
    """Read ``vocab_size`` from ``config.json``: the output head's number of channels.

    Raises:
        CheckpointError: it has none.
    """
    config = fetch_json_object(files, "config.json")
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size")
    if type(size) is not int or size <= 0:
        raise CheckpointError(file_label(files, "config.json"), "has no `vocab_size`")
    return size


def refuse_foreign(where: str, vocab: DraftVocab, vocabulary: Vocabulary, vocab_size: int) -> None:
    """Refuse a draft vocabulary of another tokenizer or model; ``where`` names its file in messages.

    Raises:
        CheckpointError: ``vocab`` does not fit ``vocabulary`` and ``vocab_size``.
    """
    if vocab.tokenizer != vocabulary.sha256:
        raise CheckpointError(
            where,
            f"belongs to another tokenizer (its vocabulary is {vocab.tokenizer[:12]}…, this checkpoint's "
            f"{vocabulary.sha256[:12]}…)",
            remedy=_REMEDY,
        )
    if vocab.vocab_size != vocab_size:
        raise CheckpointError(
            where, f"is for {vocab.vocab_size} ids, this model has {vocab_size}", remedy=_REMEDY
        )


def parse_draft_vocab(where: str, content: Mapping[str, Any]) -> DraftVocab:
    """Parse the JSON of a draft vocabulary; ``where`` names its file in messages.

    Raises:
        CheckpointError: another format, or ids that are not distinct ids of the vocabulary.
    """

    def refuse(what: str, remedy: str = _REMEDY) -> CheckpointError:
        return CheckpointError(where, what, remedy=remedy)

    if content.get("format") != FORMAT:
        raise refuse(
            f"has format {content.get('format')!r}; this version knows {FORMAT}",
            "Upgrade this package, or make a new one: qwen36 draft-vocab CHECKPOINT.",
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
        raise refuse(f"`ids` holds {wrong}, which is not an id of a vocabulary of {size}")
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
