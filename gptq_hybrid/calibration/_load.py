"""From a ``--calibration`` value to rows of token ids, and the manifest that describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import HybridError

from ._documents import load_documents
from ._duplicates import TextIndex
from ._files import ROW_ENDINGS, is_row_folder
from ._manifest import Request, build_manifest, rows_sha256
from ._mix import Part, is_mix, load_mix
from ._pack import DEFAULT_PACK, end_of_text, pack_rows
from ._select import NEAR_EXCLUDED, Selection, select
from .encode import MIN_TOKENS, to_calibration

# Words read of an evaluation document. Calibration rows are compared up to their maximal length.
_EXCLUDED_WORDS = 65_536


@dataclass(frozen=True, slots=True)
class Calibration:
    """Rows to calibrate on.

    Attributes:
        rows: ``{"input_ids", "attention_mask"}``, lists of ints, as gptqmodel takes them.
        manifest: what the rows are, a JSON object.
        further: token ids of the documents that were drawn after those of the rows.
    """

    rows: list[dict[str, list[int]]]
    manifest: dict[str, Any]
    further: list[list[int]] = field(default_factory=list)


def load_calibration(
    spec: str,
    tokenizer: Any,
    *,
    samples: int = 512,
    max_length: int = 2048,
    seed: int = 0,
    pack: bool = DEFAULT_PACK,
    exclude: Sequence[str | Path] = (),
    further: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Draw rows to calibrate on: the same rows for the same arguments, data and library versions.

    Args:
        spec: what ``qwen36 quantize --calibration`` takes: a file, folder, hub data set or mix.
        tokenizer: the model's transformers tokenizer, with its chat template.
        samples: rows. With ``pack``, documents of ``samples`` × ``max_length`` tokens in all.
        max_length: tokens kept of each document, and of each row.
        seed: decides which rows are drawn.
        pack: put several whole documents into a row, with the end-of-text token between them.
        exclude: files of evaluation documents. A row that equals one, or shares half of its text, is left out.
        further: documents to draw besides, in the same proportions, none of which is in a row.
        on_progress: called with the number of rows (tokens with ``pack``) so far and in the end.

    Raises:
        HybridError: something cannot be read, or no rows are left.
    """
    parts = load_mix(spec).parts if is_mix(spec) else (Part(name="", source=spec, spec=spec),)
    selection = select(
        parts,
        tokenizer,
        samples=samples,
        max_length=max_length,
        seed=seed,
        by_tokens=pack,
        excluded=_index_excluded(exclude),
        further=further,
        on_progress=on_progress,
    )
    if not selection.rows:
        raise _no_rows_error(spec, selection)
    rows = [chosen.input_ids for chosen in selection.rows]
    if pack:
        rows = pack_rows(rows, max_length, end_of_text(tokenizer))
    request = Request(spec, samples, max_length, seed, pack, tuple(str(path) for path in exclude))
    manifest = build_manifest(request, parts, selection, rows, tokenizer)
    more = [chosen.input_ids for chosen in selection.further]
    if further:
        counts = Counter(chosen.domain for chosen in selection.further)
        manifest["further"] = {"documents": dict(sorted(counts.items())), "sha256": rows_sha256(more)}
    return Calibration(to_calibration(rows), manifest, more)


def _no_rows_error(spec: str, selection: Selection) -> HybridError:
    counts: Counter[str] = Counter()
    for dropped in selection.dropped.values():
        counts += dropped
    reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(counts.items()))
    if not reasons:
        return HybridError(f"calibration {spec!r} has no rows", remedy="Give a file or data set with text.")
    return HybridError(
        f"calibration {spec!r} has no usable rows of {MIN_TOKENS} tokens or more (left out: {reasons})"
        + (f"; {selection.rejection}" if selection.rejection else ""),
        remedy="Give longer texts, or other ones.",
    )


def excluded_files(files: Sequence[str | Path]) -> list[str]:
    """Return the names of files of evaluation documents.

    Raises:
        HybridError: one is neither a JSONL or Parquet file nor a folder of them, by its name.
    """
    names = [str(file) for file in files]
    for file in names:
        if not file.endswith(ROW_ENDINGS) and not is_row_folder(file):
            raise HybridError(
                f"{file} cannot be excluded: it is neither a JSONL or Parquet file nor a folder of them",
                remedy="Give the file or folder that is evaluated on.",
            )
    return names


def _index_excluded(files: Sequence[str | Path]) -> TextIndex | None:
    if not files:
        return None
    index = TextIndex(NEAR_EXCLUDED, _EXCLUDED_WORDS)
    for file in excluded_files(files):
        for document in load_documents([file]):
            index.add(document.row)
    return index
