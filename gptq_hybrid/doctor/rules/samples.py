"""Sample tensor values, without numpy: importing it takes longer than a whole check."""

from __future__ import annotations

from collections.abc import Sequence

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.checkpoint.headers import TensorInfo

SAMPLE_BYTES = 4096
# 16 samples of 4 KiB from each of 15 tensors read 1 MiB of the 0.85 GB head.
SAMPLES = 16
# Over a network a sample costs a round trip, and bytes are slow: these read 15 KiB of the head in 30 requests.
FAR_SAMPLES, FAR_SAMPLE_BYTES = 2, 512
_SCAN_BYTES = 1 << 22

# All exponent bits set mean infinity or NaN (IEEE 754; bfloat16 too). In little-endian bytes: the width, the high
# bytes that can hold such an exponent, and the value from which on the byte below completes it.
_NON_FINITE = {
    "F16": (2, bytes([*range(0x7C, 0x80), *range(0xFC, 0x100)]), 0),
    "BF16": (2, b"\x7f\xff", 0x80),
    "F32": (4, b"\x7f\xff", 0x80),
}
_ALL = bytes(range(256))


def samples(checkpoint: Checkpoint, infos: Sequence[TensorInfo], count: int | None = None) -> list[bytes]:
    """Read ``count`` pieces of each tensor (fewer of a small one) in one batch; return them joined, by tensor."""
    far = checkpoint.files.far
    count = (FAR_SAMPLES if far else SAMPLES) if count is None else count
    size = FAR_SAMPLE_BYTES if far else SAMPLE_BYTES
    parts: list[tuple[TensorInfo, int, int]] = []
    owners: list[int] = []
    for number, info in enumerate(infos):
        last = max(0, info.nbytes - size)
        # Aligned to eight bytes so that every sample starts on an element.
        for start in sorted({last * i // max(1, count - 1) & ~7 for i in range(count)}):
            parts.append((info, start, size))
            owners.append(number)
    out = [b""] * len(infos)
    for owner, data in zip(owners, checkpoint.read_parts(parts), strict=True):
        out[owner] += data
    return out


def all_zero(checkpoint: Checkpoint, info: TensorInfo, sample: bytes) -> bool:
    """Whether every value is zero; the whole tensor is read only if its sample is zero, and only from a disk."""
    if any(sample):
        return False
    if checkpoint.files.far:
        return True
    return not any(
        any(checkpoint.read_bytes(info, start, _SCAN_BYTES)) for start in range(0, info.nbytes, _SCAN_BYTES)
    )


def all_alike(checkpoint: Checkpoint, info: TensorInfo, sample: bytes) -> bool:
    """Whether all 32-bit words are equal; the tensor is read whole only if its sample is, and only from a disk."""
    word = sample[:4]
    if len(word) < 4 or sample != word * (len(sample) // 4):
        return False
    if checkpoint.files.far:
        return True
    pieces = (checkpoint.read_bytes(info, start, _SCAN_BYTES) for start in range(0, info.nbytes, _SCAN_BYTES))
    return all(piece == word * (len(piece) // 4) for piece in pieces)


def has_non_finite(dtype: str, data: bytes) -> bool:
    """Whether ``data``, little-endian values of ``dtype``, holds a NaN or an infinity."""
    width, high, low = _NON_FINITE[dtype]
    top = data[width - 1 :: width]
    if not top.translate(None, delete=_ALL.translate(None, delete=high)):
        return False
    below = data[width - 2 :: width]
    return any(byte in high and below[i] >= low for i, byte in enumerate(top))
