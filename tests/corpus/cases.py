"""The faulty copies, by topic."""

from __future__ import annotations

from ._act_order import ACT_ORDER_CASES
from ._files import FILE_CASES
from ._mtp import MTP_CASES
from ._near_misses import NEAR_MISSES
from ._quantized import QUANTIZED_CASES
from ._serving import SERVING_CASES
from ._variants import VARIANT_CASES
from .case import CorpusCase

CASES: tuple[CorpusCase, ...] = (
    *FILE_CASES,
    *MTP_CASES,
    *QUANTIZED_CASES,
    *ACT_ORDER_CASES,
    *SERVING_CASES,
    *NEAR_MISSES,
    *VARIANT_CASES,
)
