"""Take the held-out sample and the calibration pool out of the corpus.

    python -m bench.mini.samples WORK      # after corpus.py; needs numpy

Writes `heldout/DOMAIN.jsonl` and `corpus.json` (the corpus's manifest) here, and `../quality/calibration.jsonl.xz`.
A line is a JSON object: `text` or `messages`, with `source` (package), `licence` and `domain`. Held-out documents
are those of the corpus's `heldout` and `spare` parts, cut at a natural boundary; calibration ones are of its
training part. Both in hash order.

A held-out document is dropped if a paragraph of 120 characters or more, or more than a quarter of its 64-byte
windows (white space and case aside), occurs in the training part, or such a share in held-out documents taken
before. Texts of licences are left out: most may be copied verbatim only.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.mini.corpus import PARAGRAPH, text_hash
from bench.mini.sources import CHAT, CODE, DOMAINS

Array = Any  # numpy.ndarray, whose types are not checked here

_HERE = Path(__file__).parent
CALIBRATION = _HERE.parent / "quality" / "calibration.jsonl.xz"

# Held out, per domain. Lengths are UTF-8 bytes, so that scripts of two and three bytes a character get fewer.
_DOCUMENTS, _LENGTH, _SHORTEST = 48, 2_000, 500
_CANDIDATES = 400  # read in hash order, of which the first `_DOCUMENTS` good ones are kept
_SIMILAR = 0.25  # share of windows from which a document counts as seen
_WINDOW = 64  # bytes, a power of two

# Calibration, per domain, in bytes.
_POOL = dict.fromkeys(DOMAINS, 200_000) | {CHAT: 600_000}
_LONG = 8_000  # characters from which a document is long: half of a pool's bytes, if there are such
_LONG_CUT, _SHORT_CUT = 16_000, 6_000

_LICENCE = re.compile(r"changing it is not allowed|verbatim\s+copies\s+of\s+this\s+license", re.I)
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.S)
_SPACE = re.compile(rb"\s+")


@dataclass(slots=True)
class Text:
    """A document of the corpus."""

    text: str
    source: str

    @property
    def size(self) -> int:
        """UTF-8 bytes."""
        return len(self.text.encode())


def read(work: Path, part: str, domain: str) -> list[Text]:
    """Documents of one part and domain, in hash order of their text."""
    with (work / "corpus" / part / f"{domain}.jsonl").open(encoding="utf-8") as lines:
        texts = [Text(**json.loads(line)) for line in lines]
    return sorted(texts, key=lambda t: text_hash(t.text))


def cut(text: str, limit: int, domain: str) -> str:
    """At most `limit` bytes of a text, cut at the last paragraph, line, sentence or word; code from its middle on.

    A conversation ends with a whole turn of the assistant, or is empty if its first one is too long.
    """
    data = text.encode()
    if len(data) <= limit:
        return text
    if domain == CHAT:
        end = data[:limit].decode(errors="ignore").rfind("<|im_end|>\n<|im_start|>user\n")
        return text[: end + len("<|im_end|>\n")] if end > 0 else ""
    if domain in CODE and len(data) > 2 * limit:  # the beginnings are imports and licences
        third = text.find("\n\n", len(text) // 3)
        text = text[third + 2 :] if 0 < third < len(text) // 2 else text
    head = text.encode()[:limit].decode(errors="ignore")
    for boundary in ("\n\n", "\n", ". ", "。", " "):
        if (at := head.rfind(boundary)) > len(head) // 2:
            return head[: at + len(boundary)].rstrip()
    return head


def windows(text: str) -> Array:
    """uint64 hashes of all windows of `_WINDOW` bytes of a text in lower case with single spaces."""
    data = _SPACE.sub(b" ", text.lower().encode())
    hashes = np.frombuffer(data, dtype=np.uint8).astype(np.uint64)
    factor, size = 0x9E3779B97F4A7C15, 1
    while size < _WINDOW:  # the hash of 2n bytes from those of n
        hashes = hashes[:-size] * np.uint64(factor) + hashes[size:] if len(hashes) > size else hashes[:0]
        factor, size = factor * factor % 2**64 | 1, 2 * size
    return hashes ^ (hashes >> np.uint64(29))


def paragraphs(text: str) -> set[int]:
    """Hashes of the paragraphs that the corpus counts."""
    return {text_hash(p) for p in text.split("\n\n") if len(p) >= PARAGRAPH}


def seen(candidates: list[str], hashes: list[Array], trained: Iterable[str]) -> list[float]:
    """Share of each candidate's windows (`hashes`) that occur in the trained texts; 1 if a long paragraph does."""
    wanted = np.unique(np.concatenate(hashes))
    some: Array = np.zeros(1 << 26, dtype=bool)  # a filter by 26 bits, so that few windows are searched for
    some[wanted >> np.uint64(38)] = True
    found: Array = np.zeros(len(wanted), dtype=bool)
    own = [paragraphs(text) for text in candidates]
    unseen = set().union(*own)
    for text in trained:
        unseen -= paragraphs(text)
        other = windows(text)
        other = other[some[other >> np.uint64(38)]]
        places = np.searchsorted(wanted, other).clip(max=len(wanted) - 1)
        found[places[wanted[places] == other]] = True
    shares = [float(found[np.searchsorted(wanted, h)].mean()) if len(h) else 1.0 for h in hashes]
    return [share if paragraphs_ <= unseen else 1.0 for share, paragraphs_ in zip(shares, own, strict=True)]


def held_out(work: Path) -> dict[str, list[dict[str, str]]]:
    """The sample by domain: `_DOCUMENTS` rows each, fewer where there are no more."""
    candidates: list[tuple[str, Text]] = []
    for domain in DOMAINS:
        own = [t for part in ("heldout", "spare") for t in read(work, part, domain)]
        short = [Text(cut(t.text, _LENGTH, domain), t.source) for t in own if not _LICENCE.search(t.text)]
        # Longer ones first, each group in hash order: sayings of one line say little about a model.
        short.sort(key=lambda t: (t.size < _SHORTEST, t.size < _SHORTEST // 3))
        candidates += [(domain, t) for t in short[:_CANDIDATES] if t.text]
    hashes = [windows(t.text) for _, t in candidates]
    shares = seen(
        [t.text for _, t in candidates], hashes, (t.text for d in DOMAINS for t in read(work, "train", d))
    )
    rows: dict[str, list[dict[str, str]]] = {domain: [] for domain in DOMAINS}
    taken: Array = np.empty(0, dtype=np.uint64)
    dropped = dict.fromkeys(DOMAINS, 0)
    for (domain, text), own_windows, share in zip(candidates, hashes, shares, strict=True):
        if len(rows[domain]) == _DOCUMENTS:
            continue
        if share > _SIMILAR or np.isin(own_windows, taken).mean() > _SIMILAR:
            dropped[domain] += 1
            continue
        taken = np.union1d(taken, own_windows)
        rows[domain].append({"text": text.text, "source": text.source})
    print("dropped as seen:", dropped)
    return rows


def messages(text: str) -> list[dict[str, str]]:
    """The turns of a conversation in ChatML; thoughts stay in the content, as the chat template expects them."""
    turns = [{"role": role, "content": content} for role, content in _TURN.findall(text)]
    again = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns)
    if again != text:
        raise ValueError(f"not a conversation: {text[:200]!r}")
    return turns


def calibration(work: Path) -> Iterator[dict[str, Any]]:
    """Rows of the calibration pools, domain by domain."""
    for domain in DOMAINS:
        documents = [t for t in read(work, "train", domain) if not _LICENCE.search(t.text)]
        long = [t for t in documents if len(t.text) >= _LONG]
        short = [t for t in documents if len(t.text) < _LONG and (domain == CHAT or t.size >= _SHORTEST)]
        size = 0
        for group, limit, budget in (
            (long, _LONG_CUT, _POOL[domain] // 2),
            (short, _SHORT_CUT, _POOL[domain]),
        ):
            for document in group:
                if size >= budget:
                    break
                text = document.text if domain == CHAT else cut(document.text, limit, "")
                content = {"messages": messages(text)} if domain == CHAT else {"text": text}
                size += len(text.encode())
                yield content | {"domain": domain, "source": document.source}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder that corpus.py wrote to")
    work: Path = parser.parse_args().work
    manifest = json.loads((work / "corpus" / "manifest.json").read_text(encoding="utf-8"))
    licences = {entry["package"]: entry["licence"] for entry in manifest["packages"]}

    def line(row: dict[str, Any]) -> str:
        return json.dumps(row | {"licence": licences[row["source"]]}, ensure_ascii=False) + "\n"

    rows = held_out(work)
    for domain, own in rows.items():
        lines = "".join(line(row | {"domain": domain}) for row in own)
        (_HERE / "heldout" / f"{domain}.jsonl").write_text(lines, encoding="utf-8")
        print(
            f"heldout {domain:7} {len(own):3} documents {sum(len(r['text'].encode()) for r in own):7} bytes"
        )
    pool = [line(row) for row in calibration(work)]
    CALIBRATION.parent.mkdir(exist_ok=True)
    CALIBRATION.write_bytes(lzma.compress("".join(pool).encode(), preset=9 | lzma.PRESET_EXTREME))
    shutil.copy(work / "corpus" / "manifest.json", _HERE / "corpus.json")
    print(f"{len(pool)} calibration rows, {CALIBRATION.stat().st_size} bytes compressed")


if __name__ == "__main__":
    main()
