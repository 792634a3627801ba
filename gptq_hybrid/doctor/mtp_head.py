"""Find the MTP head in a checkpoint, wherever it lies, and refuse one that would not draft."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from gptq_hybrid.checkpoint import Checkpoint, TensorInfo, layout_for
from gptq_hybrid.common.errors import HybridError

from ._check import check_mtp
from .findings import Severity

_WITHOUT = "For a checkpoint without MTP: `--no-mtp`, or `model.keep_mtp = False` before quantize()."
# Where a loader looks does not matter in a source: the writer looks everywhere.
_IRRELEVANT_IN_SOURCE = frozenset({"mtp-unindexed"})


def find_mtp(source: str | Path) -> list[TensorInfo]:
    """Return the head's tensors: inline, in a separate file, indexed or not.

    Raises:
        CheckpointError: the source cannot be read.
        HybridError: the head is absent, incomplete, of the wrong shape or dtype, or holds only zeros.
    """
    return find_mtp_in(Checkpoint.open(source))


def find_mtp_in(
    checkpoint: Checkpoint, *, ignoring: Collection[str] = (), without: str = _WITHOUT
) -> list[TensorInfo]:
    """:func:`find_mtp` in an open checkpoint, wherever its files are.

    Args:
        checkpoint: where to look.
        ignoring: rules whose findings do not matter.
        without: what the error's remedy says about doing without a head.
    """
    findings = [
        finding
        for finding in check_mtp(checkpoint)
        if finding.severity is Severity.ERROR and finding.rule not in {*_IRRELEVANT_IN_SOURCE, *ignoring}
    ]
    head = layout_for(checkpoint.config).mtp
    everywhere = {**checkpoint.stray, **checkpoint.loaded}
    packed = [spec.name for spec in head if spec.name not in everywhere]
    if findings or packed:
        worst = findings[0].message if findings else f"{packed[0]} is stored quantized"
        raise HybridError(
            f"{checkpoint.location}: the MTP head cannot be kept: {worst}",
            remedy=f"Fetch the original again with its MTP tensors. {without}".rstrip(),
        )
    return [everywhere[spec.name] for spec in head]
