"""The MTP head: finding it in a checkpoint wherever it lies, and writing it where loaders look."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from ._atomic import write_json_atomic
from ._check import check_mtp
from ._checkpoint import INDEX_NAME, MTP_FILE, Checkpoint
from ._safetensors import TensorInfo, read_header, write_verbatim
from .errors import HybridError
from .plugins import layout_for

_WITHOUT = "For a checkpoint without MTP: `--no-mtp`, or `model.keep_mtp = False` before quantize()."
# Rules that are about where a loader looks do not matter in a source: the writer looks everywhere.
_IRRELEVANT_IN_SOURCE = frozenset({"mtp-unindexed"})


def find_mtp(source: Path) -> list[TensorInfo]:
    """The head's tensors: inline, in a separate file, indexed or not.

    Raises:
        CheckpointError: the source cannot be read.
        HybridError: the head is absent, incomplete, of the wrong shape or dtype, or holds only zeros.
    """
    checkpoint = Checkpoint.open(source)
    wanted = layout_for(checkpoint.config).mtp
    findings = [f for f in check_mtp(checkpoint) if f.rule not in _IRRELEVANT_IN_SOURCE]
    if findings:
        worst = findings[0]
        raise HybridError(
            f"{source}: the MTP head cannot be kept: {worst.message}",
            remedy=f"Fetch the original again with its MTP tensors. {_WITHOUT}",
        )
    everywhere = {**checkpoint.stray, **checkpoint.loaded}
    return [everywhere[spec.name] for spec in wanted]


def write_mtp(folder: Path, source: Path, tensors: list[TensorInfo], *, name: str = MTP_FILE) -> None:
    """Write the head's file byte for byte from the source, and prove it.

    Raises:
        HybridError: the bytes read back differ from the source's (a failing disk).
    """
    written = write_verbatim(
        folder / name, [(source / info.file, info) for info in tensors], metadata={"format": "pt"}
    )
    for info in tensors:
        copy = written[info.name]
        if _digest(source / info.file, info) != _digest(folder / name, copy):
            raise HybridError(f"{name}: {info.name} differs from the source after writing")


def _digest(path: Path, info: TensorInfo) -> bytes:
    digest, left = sha256(), info.nbytes
    with path.open("rb") as handle:
        handle.seek(info.begin)
        while left and (piece := handle.read(min(left, 1 << 24))):
            digest.update(piece)
            left -= len(piece)
    return digest.digest()


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
