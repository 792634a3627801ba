"""``calibration.json``: what a checkpoint was calibrated on, precisely enough to be compared and made again."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ._files import describe_files, jsonl_files, on_disk
from ._mix import Part, is_mix
from ._select import Selection
from ._sources import find_source

FORMAT = 1
_LIBRARIES = ("vllm-qwen36-plugin", "transformers", "tokenizers", "datasets", "huggingface-hub", "jinja2")


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, as in :func:`~gptq_hybrid.calibration.load_calibration`."""

    spec: str
    samples: int
    max_length: int
    seed: int
    pack: bool
    exclude: tuple[str, ...]


def build_manifest(
    request: Request, parts: Sequence[Part], found: Selection, rows: Sequence[Sequence[int]], tokenizer: Any
) -> dict[str, Any]:
    """The manifest of ``rows``, which are those of ``found``, packed or not.

    ``sha256`` is that of all rows in order, each as its length and its token ids in little-endian uint32; by
    domain, of its documents before packing. Local sources go by their last name: no path of this machine.
    """
    return {
        "format": FORMAT,
        "calibration": _public(request.spec),
        "samples": request.samples,
        "max_length": request.max_length,
        "seed": request.seed,
        "pack": request.pack,
        "rows": len(rows),
        "tokens": sum(len(row) for row in rows),
        "sha256": rows_sha256(rows),
        "sources": [_source(part, found) for part in parts],
        "domains": _domains(found),
        "excluded": [
            {"file": Path(file).name, **describe_files(jsonl_files(Path(file)), Path(file))}
            for file in request.exclude
        ],
        "tokenizer": _tokenizer(tokenizer),
        "versions": {name: at for name in _LIBRARIES if (at := _version(name)) is not None},
    }


def rows_sha256(rows: Iterable[Sequence[int]]) -> str:
    """SHA-256, in hexadecimal, of rows of token ids: each its length, then its ids, in little-endian uint32."""
    digest = sha256()
    for row in rows:
        digest.update(struct.pack(f"<{len(row) + 1}I", len(row), *row))
    return digest.hexdigest()


def _source(part: Part, found: Selection) -> dict[str, Any]:
    source: dict[str, Any] = {}
    if part.name:
        source["domain"] = part.name
    source["source"] = _public(part.spec)
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
            source[key] = _public(value) if key == "evaluation" else value
    if part.licence:
        source["licence"] = part.licence
    describe = find_source(part.source).describe
    if describe is not None:
        # What the source says of itself goes before what the mix says of it.
        source |= describe(part.source)
    if part.name in found.exhausted:
        source["exhausted"] = True
    return source


def _domains(found: Selection) -> dict[str, Any]:
    domains: dict[str, Any] = {}
    for name in sorted(
        {row.domain for row in found.rows} | {name for name in found.dropped if found.dropped[name]}
    ):
        mine = [row for row in found.rows if row.domain == name]
        domains[name] = {
            "documents": len(mine),
            "tokens": sum(len(row.input_ids) for row in mine),
            "sha256": rows_sha256(row.input_ids for row in mine),
            "dropped": dict(sorted(found.dropped.get(name, {}).items())),
        }
        licences = sorted({row.licence for row in mine if row.licence})
        if licences:
            domains[name]["licences"] = licences
    return domains


def _public(spec: str) -> str:
    """``spec`` as it may leave this machine: of a path, the last name."""
    is_path = (
        on_disk(spec) is not None
        or Path(spec).is_absolute()
        or (is_mix(spec) and not spec.startswith("mix:"))
    )
    return Path(spec).name if is_path else spec


def _tokenizer(tokenizer: Any) -> dict[str, str]:
    """SHA-256 of ``tokenizer.json`` where it is a file, else of the vocabulary; and of the chat template."""
    file = Path(str(tokenizer.name_or_path)) / "tokenizer.json"
    if file.is_file():
        found = {"tokenizer.json": sha256(file.read_bytes()).hexdigest()}
    else:
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), separators=(",", ":"))
        found = {"vocabulary": sha256(vocabulary.encode()).hexdigest()}
    if isinstance(tokenizer.chat_template, str):
        found["chat_template"] = sha256(tokenizer.chat_template.encode()).hexdigest()
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
