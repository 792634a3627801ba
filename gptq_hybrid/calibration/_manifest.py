"""``calibration.json``: what a checkpoint was calibrated on, precisely enough to compare and to draw again."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ._files import describe_files, path_kind, printable_name, row_files
from ._mix import Part, is_mix
from ._select import Selection
from ._sources import find_source

FORMAT = 1
_LIBRARIES = ("vllm-qwen36-plugin", "transformers", "tokenizers", "datasets", "huggingface-hub", "jinja2")


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of :func:`~gptq_hybrid.calibration.load_calibration` that decide the rows."""

    spec: str
    samples: int
    max_length: int
    seed: int
    pack: bool
    exclude: tuple[str, ...]


def build_manifest(
    request: Request,
    parts: Sequence[Part],
    selection: Selection,
    rows: Sequence[Sequence[int]],
    tokenizer: Any,
) -> dict[str, Any]:
    """Describe ``rows``: those of ``selection``, packed or not.

    ``sha256`` is :func:`rows_sha256` of all rows in order; within ``domains``, of the domain's documents before
    packing. Of a local source only the last name is noted, no path of this machine.
    """
    return {
        "format": FORMAT,
        "calibration": _without_path(request.spec),
        "samples": request.samples,
        "max_length": request.max_length,
        "seed": request.seed,
        "pack": request.pack,
        "rows": len(rows),
        "tokens": sum(len(row) for row in rows),
        "sha256": rows_sha256(rows),
        "sources": [_describe_part(part, selection) for part in parts],
        "domains": _describe_domains(selection),
        "excluded": [
            {"file": printable_name(Path(file)), **describe_files(row_files(Path(file)), Path(file))}
            for file in request.exclude
        ],
        "tokenizer": _describe_tokenizer(tokenizer),
        "versions": _versions(),
    }


def rows_sha256(rows: Iterable[Sequence[int]]) -> str:
    """Hash rows of token ids, each as its length and its ids in little-endian uint32: SHA-256 in hexadecimal."""
    digest = sha256()
    for row in rows:
        digest.update(struct.pack(f"<{len(row) + 1}I", len(row), *row))
    return digest.hexdigest()


def _describe_part(part: Part, selection: Selection) -> dict[str, Any]:
    source: dict[str, Any] = {}
    if part.name:
        source["domain"] = part.name
    source["source"] = _without_path(part.spec)
    if part.name:
        source["weight"] = part.weight
    defaults: dict[str, Any] = {
        "max_rows": None,
        "only_full": False,
        "template": {},
        "evaluation": None,
        "hold_out": 0.0,
    }
    for key, default in defaults.items():
        value = getattr(part, key)
        if value != default:
            source[key] = _without_path(value) if key == "evaluation" else value
    if part.licence:
        source["licence"] = part.licence
    describe = find_source(part.source).describe
    if describe is not None:
        # What the source says about itself replaces what the mix says about it.
        source |= describe(part.source)
    if part.name in selection.exhausted:
        source["exhausted"] = True
    return source


def _describe_domains(selection: Selection) -> dict[str, Any]:
    domains: dict[str, Any] = {}
    dropped = {name for name, counts in selection.dropped.items() if counts}
    for name in sorted({row.domain for row in selection.rows} | dropped):
        rows = [row for row in selection.rows if row.domain == name]
        domains[name] = {
            "documents": len(rows),
            "tokens": sum(len(row.input_ids) for row in rows),
            "sha256": rows_sha256(row.input_ids for row in rows),
            "dropped": dict(sorted(selection.dropped.get(name, {}).items())),
        }
        licences = sorted({row.licence for row in rows if row.licence})
        if licences:
            domains[name]["licences"] = licences
    return domains


def _without_path(spec: str) -> str:
    """Return ``spec`` as it may leave this machine: of a path, only the last name."""
    is_path = (
        path_kind(spec) is not None
        or Path(spec).is_absolute()
        or (is_mix(spec) and not spec.startswith("mix:"))
    )
    return printable_name(Path(spec)) if is_path else spec


def _describe_tokenizer(tokenizer: Any) -> dict[str, str]:
    """Hash ``tokenizer.json`` if there is that file, else the vocabulary; and the chat template. SHA-256."""
    file = Path(str(tokenizer.name_or_path)) / "tokenizer.json"
    if file.is_file():
        hashes = {"tokenizer.json": sha256(file.read_bytes()).hexdigest()}
    else:
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), separators=(",", ":"))
        hashes = {"vocabulary": sha256(vocabulary.encode()).hexdigest()}
    if isinstance(tokenizer.chat_template, str):
        hashes["chat_template"] = sha256(tokenizer.chat_template.encode()).hexdigest()
    return hashes


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
