"""Find the MTP head in a checkpoint, wherever it lies, and refuse one that would not draft."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.common.errors import HybridError

from ._check import check_mtp
from .findings import Severity

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
