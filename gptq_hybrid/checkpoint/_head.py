"""The MTP head: finding it in a checkpoint wherever it lies, and writing it where loaders look."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ._atomic import write_json_atomic
from ._check import check_mtp
from ._checkpoint import INDEX_NAME, MTP_FILE, Checkpoint
from ._safetensors import TensorInfo, read_header
from ._write import write_verbatim
from .errors import HybridError
from .findings import Severity
from .plugins import layout_for

_WITHOUT = "For a checkpoint without MTP: `--no-mtp`, or `model.keep_mtp = False` before quantize()."
# Rules that are about where a loader looks do not matter in a source: the writer looks everywhere.
_IRRELEVANT_IN_SOURCE = frozenset({"mtp-unindexed"})


def find_mtp(source: str | Path) -> list[TensorInfo]:
    """The head's tensors: inline, in a separate file, indexed or not.

    Raises:
        CheckpointError: the source cannot be read.
        HybridError: the head is absent, incomplete, of the wrong shape or dtype, or holds only zeros.
    """
    return head_of(Checkpoint.open(source))


def head_of(
    checkpoint: Checkpoint, *, ignoring: Collection[str] = (), without: str = _WITHOUT
) -> list[TensorInfo]:
    """:func:`find_mtp` of an open checkpoint, wherever its files are.

    ``ignoring`` names rules whose findings do not matter; ``without`` says how to do without a head.
    """
    findings = [
        f
        for f in check_mtp(checkpoint)
        if f.severity is Severity.ERROR and f.rule not in {*_IRRELEVANT_IN_SOURCE, *ignoring}
    ]
    wanted = layout_for(checkpoint.config).mtp
    everywhere = {**checkpoint.stray, **checkpoint.loaded}
    packed = [spec.name for spec in wanted if spec.name not in everywhere]
    if findings or packed:
        worst = findings[0].message if findings else f"{packed[0]} is stored quantized"
        raise HybridError(
            f"{checkpoint.location}: the MTP head cannot be kept: {worst}",
            remedy=f"Fetch the original again with its MTP tensors. {without}".rstrip(),
        )
    return [everywhere[spec.name] for spec in wanted]


def write_mtp(folder: Path, source: str | Path, tensors: list[TensorInfo], *, name: str = MTP_FILE) -> None:
    """Write the head's file byte for byte from the source, and prove it.

    Raises:
        CheckpointError: the source ended early, or the bytes read back differ (a failing disk).
    """
    files = Checkpoint.open(source).files
    write_verbatim(folder / name, [(files, info) for info in tensors], metadata={"format": "pt"})


def write_index(folder: Path) -> None:
    """An index that names every tensor of every safetensors file in ``folder``, MTP included.

    Raises:
        HybridError: a tensor lies in two files.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        for name, info in read_header(path).items():
            if name in weight_map:
                raise HybridError(f"{name} lies both in {weight_map[name]} and in {path.name}")
            weight_map[name] = path.name
            total += info.nbytes
    write_json_atomic(
        folder / INDEX_NAME,
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )
