"""Read tensors in part: small ones whole, large ones in pieces spread over their length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.doctor.findings import Inspection
from gptq_hybrid.doctor.values import Scan, Values

SAMPLE_BYTES = 4096
SAMPLES = 16
# Up to this size a tensor is read whole from a disk: all norms and most scales of a 27B.
WHOLE_BYTES = 1 << 20
# Over a network a sample costs a round trip, and bytes are slow: these read 15 KiB of the head in 30 requests.
FAR_SAMPLES, FAR_SAMPLE_BYTES = 2, 512
# A tensor that looks all alike gets a second look, at this many more pieces. Sparse files may claim any length.
_SECOND_LOOK, _SECOND_BYTES = 64, 1 << 16
# What is held at a time, and what one check reads in all, of which a 27B takes 0.2 GB. Past that, less of each.
_BATCH_BYTES = 16 << 20
_MOST_BYTES = 1 << 30
_Part = tuple[TensorInfo, int, int]


def samples(checkpoint: Checkpoint, infos: Sequence[TensorInfo], count: int | None = None) -> list[bytes]:
    """Read ``count`` pieces of each tensor (fewer of a small one) in one batch; return them joined, by tensor."""
    far = checkpoint.files.far
    count = (FAR_SAMPLES if far else SAMPLES) if count is None else count
    parts: list[_Part] = []
    owners: list[int] = []
    for number, info in enumerate(infos):
        pieces = _spread(info, count, FAR_SAMPLE_BYTES if far else SAMPLE_BYTES)
        parts += pieces
        owners += [number] * len(pieces)
    out = [b""] * len(infos)
    for owner, data in zip(owners, checkpoint.read_parts(parts), strict=True):
        out[owner] += data
    return out


def values(inspection: Inspection, infos: Sequence[TensorInfo], count: int | None = None) -> list[Values]:
    """Return what the values of each tensor come to, as far as they are read: all of them in a deep check.

    Args:
        inspection: whose checkpoint they are in.
        infos: the tensors.
        count: pieces of each over a network; two by default.
    """
    checkpoint = inspection.checkpoint
    if inspection.deep is not None:
        return [inspection.deep.values[info.file, info.name] for info in infos]
    scans = [Scan(info.dtype) for info in infos]
    plan: list[tuple[int, _Part]] = []
    if checkpoint.files.far:
        for number, info in enumerate(infos):
            plan += [(number, part) for part in _spread(info, count or FAR_SAMPLES, FAR_SAMPLE_BYTES)]
    else:
        whole, pieces = _share(infos)
        for number, info in enumerate(infos):
            # Of packed words only the question whether they differ at all is asked.
            few = pieces if info.dtype[0] in "BF" else min(pieces, 2)
            small = info.nbytes <= whole
            parts = [(info, 0, info.nbytes)] if small else _spread(info, few, SAMPLE_BYTES)
            plan += [(number, part) for part in parts]
    for batch in _batches(plan):
        for (number, _), data in zip(batch, checkpoint.read_parts([part for _, part in batch]), strict=True):
            scans[number].add(data)
    if not checkpoint.files.far:
        for scan, info in zip(scans, infos, strict=True):
            if scan.alike and info.nbytes > WHOLE_BYTES:
                for part in _spread(info, _SECOND_LOOK, _SECOND_BYTES):
                    if scan.alike:
                        scan.add(checkpoint.read_parts([part])[0])
    return [scan.values for scan in scans]


def _share(infos: Sequence[TensorInfo]) -> tuple[int, int]:
    """Up to which size tensors are read whole, and how many pieces are read of the others."""
    small = sum(info.nbytes for info in infos if info.nbytes <= WHOLE_BYTES)
    large = sum(info.nbytes > WHOLE_BYTES for info in infos)
    whole = WHOLE_BYTES if small <= _MOST_BYTES else WHOLE_BYTES * _MOST_BYTES // small
    return whole, SAMPLES if large <= 1 << 13 else 2


def _spread(info: TensorInfo, count: int, size: int) -> list[_Part]:
    """Pieces at even distances, the first and the last at the ends; aligned, so that each starts on an element."""
    last = max(0, info.nbytes - size)
    aligned = last & ~7
    starts = sorted({last * i // max(1, count - 1) & ~7 for i in range(count)})
    return [(info, start, size if start < aligned else info.nbytes - start) for start in starts]


def _batches(plan: list[tuple[int, _Part]]) -> Iterator[list[tuple[int, _Part]]]:
    batch: list[tuple[int, _Part]] = []
    held = 0
    for item in plan:
        size = min(item[1][2], item[1][0].nbytes)
        if batch and held + size > _BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += size
    if batch:
        yield batch
