"""What the values of a tensor come to, and which of them no model can work with.

Read without numpy, whose import takes longer than a whole check. The check in vLLM's worker
(``vllm_qwen36_plugin.mtp_guard``) asks :func:`what_is_wrong` too, so that both say the same of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gptq_hybrid.checkpoint.headers import DTYPE_BITS

# All exponent bits set mean infinity or NaN (IEEE 754; bfloat16 too). In little-endian bytes: the width, the high
# bytes that can hold such an exponent, and the value from which on the byte below completes it. The eight-bit types
# are those of the OCP specification: E4M3 has one NaN a sign and no infinity, E8M0 one NaN.
_NON_FINITE = {
    "F16": (2, bytes([*range(0x7C, 0x80), *range(0xFC, 0x100)]), 0),
    "BF16": (2, b"\x7f\xff", 0x80),
    "F32": (4, b"\x7f\xff", 0x80),
    "F64": (8, b"\x7f\xff", 0xF0),
    "F8_E4M3": (1, b"\x7f\xff", 0),
    "F8_E5M2": (1, bytes([*range(0x7C, 0x80), *range(0xFC, 0x100)]), 0),
    "F8_E8M0": (1, b"\xff", 0),
}
_ALL = bytes(range(256))
# Large but finite numbers are few in any model. Where they are not, importing numpy pays.
_MANY = 64


class Role(StrEnum):
    """What a tensor does in its module, as far as its values matter."""

    MATRIX = "matrix"
    SCALES = "scales"
    # Norms that scale by w itself: those of Gated-DeltaNet.
    GAIN = "gain"
    # All others: norms that scale by 1 + w, biases, A_log, dt_bias.
    VECTOR = "vector"


@dataclass(frozen=True, slots=True)
class Values:
    """What was seen of a tensor's values.

    Attributes:
        non_finite: there is a NaN or an infinity.
        zero: all are zero; never of integers, whose codes mean what their scales and zero points make of them.
        constant: all are the same.
    """

    non_finite: bool
    zero: bool
    constant: bool


def what_is_wrong(role: Role, values: Values) -> str | None:
    """Say what keeps a module with such a tensor from working; None if nothing does."""
    if values.non_finite:
        return "holds NaN or infinite values"
    if values.zero and role is not Role.VECTOR:
        return "holds only zeros"
    # Scales may well be alike, and so may gains; a matrix of one value gives one number for all outputs.
    if values.constant and role is Role.MATRIX:
        return "holds one value over and over"
    return None


def role_of(module: str, suffix: str, shape: tuple[int, ...]) -> Role:
    """Return the role of the tensor ``module.suffix``."""
    if suffix in {"scales", "weight_scale", "weight_scale_inv"}:
        return Role.SCALES
    if suffix in {"qweight", "weight_packed"} or (suffix == "weight" and len(shape) > 1):
        return Role.MATRIX
    return Role.GAIN if suffix == "weight" and module.endswith(".linear_attn.norm") else Role.VECTOR


class Scan:
    """Takes pieces of one tensor's little-endian bytes, each of whole elements, and adds up what they hold."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._width = max(1, DTYPE_BITS[dtype] // 8)
        self._first: bytes | None = None
        self._non_finite = False
        self._zero = self._constant = True

    def add(self, data: bytes) -> None:
        """Look at one piece."""
        if not data:
            return
        if self._first is None:
            self._first = data[: self._width]
        if self._constant:
            word = self._first
            self._constant = data[: self._width] == word and data == word * (len(data) // self._width)
            self._zero = self._constant and not any(word)
        if not self._non_finite and self._dtype in _NON_FINITE:
            self._non_finite = has_non_finite(self._dtype, data)

    @property
    def alike(self) -> bool:
        """Whether all that was seen so far is the same."""
        return self._constant

    @property
    def values(self) -> Values:
        """What was seen; an empty tensor is neither zero nor constant."""
        seen, number = self._first is not None, self._dtype[0] in "BF"
        return Values(self._non_finite, seen and number and self._zero, seen and self._constant)


def has_non_finite(dtype: str, data: bytes) -> bool:
    """Whether ``data``, little-endian values of ``dtype``, holds a NaN or an infinity."""
    width, high, low = _NON_FINITE[dtype]
    top = data[width - 1 :: width]
    others = _ALL.translate(None, delete=high)
    suspects = len(top.translate(None, delete=others))
    if not suspects or not low:
        return bool(suspects)
    below = data[width - 2 :: width]
    if suspects > _MANY:
        import numpy as np

        ends = np.frombuffer(top, np.uint8), np.frombuffer(below, np.uint8)
        return bool(((ends[0] & 0x7F == 0x7F) & (ends[1] >= low)).any())
    return any(byte in high and below[i] >= low for i, byte in enumerate(top))
