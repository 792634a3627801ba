"""What the writer does beside gptqmodel: which bits the two heads get, and whether the vision tower stays."""

from __future__ import annotations

from dataclasses import dataclass

from gptq_hybrid.checkpoint import LinearSpec, TensorLayout
from gptq_hybrid.common.errors import HybridError

# Eight values of 4 bits fill a 32-bit word of `qzeros`; 32 divides the widths of all vLLM kernels.
_OUTPUTS = 32


@dataclass(frozen=True, slots=True)
class Packaging:
    """How a checkpoint is packaged.

    Attributes:
        lm_head_bits: 8 stores the output head in GPTQ's layout, rounded to nearest; 16 leaves it in BF16. Either is
            solved again where codes are rounded again (``[tune]``).
        mtp_bits: 4 or 8 for the linears of the MTP head, likewise; 16 copies the head bit for bit.
        text_only: leave the vision tower out. The checkpoint keeps its class and its names, which load in
            the most versions of vLLM, and is served with ``--limit-mm-per-prompt '{"image": 0, "video": 0}'``.
    """

    lm_head_bits: int = 16
    mtp_bits: int = 16
    text_only: bool = False

    def __post_init__(self) -> None:
        if self.lm_head_bits not in (8, 16) or self.mtp_bits not in (4, 8, 16):
            raise ValueError(f"lm_head_bits are 8 or 16, mtp_bits 4, 8 or 16: {self}")


def refuse_impossible(layout: TensorLayout, packaging: Packaging, group_size: int, *, keep_mtp: bool) -> None:
    """Refuse a packaging that this model's heads do not allow.

    Raises:
        HybridError: the output head is tied, or groups or words do not divide a head's dimensions.
    """
    packed: list[LinearSpec] = []
    if packaging.lm_head_bits < 16:
        if layout.output_head is None:
            raise HybridError(
                "lm_head cannot be quantized: it is tied to the embeddings, which stay in BF16",
                remedy="Leave lm_head at 16 bits.",
            )
        packed.append(layout.output_head)
    if packaging.mtp_bits < 16 and keep_mtp:
        packed += layout.mtp_linears
    for linear in packed:
        if linear.in_features % max(1, group_size) or linear.out_features % _OUTPUTS:
            raise HybridError(
                f"{linear.name} ({linear.out_features} × {linear.in_features}) cannot be packed in groups of "
                f"{group_size}",
                remedy=f"Inputs must be a multiple of the group size, outputs of {_OUTPUTS}; leave it at 16 bits.",
            )
