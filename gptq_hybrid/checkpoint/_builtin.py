"""This package's own contributions, through the hooks that third parties use."""

from __future__ import annotations

from .families.qwen3_5 import QWEN3_5
from .findings import Rule
from .hookspecs import hookimpl
from .layout import Family
from .rules.act_order import ACT_ORDER_RULES
from .rules.draft_vocab import DRAFT_VOCAB_RULES
from .rules.index import INDEX_RULES
from .rules.mtp import MTP_RULES
from .rules.mtp_quantization import MTP_QUANTIZATION_RULES
from .rules.quantization import QUANTIZATION_RULES
from .rules.quantized import QUANTIZED_RULES
from .rules.serving import SERVING_RULES


@hookimpl
def qwen36_families() -> list[Family]:
    return [QWEN3_5]


@hookimpl
def qwen36_check_rules() -> list[Rule]:
    return [
        *INDEX_RULES,
        *MTP_RULES,
        *MTP_QUANTIZATION_RULES,
        *QUANTIZATION_RULES,
        *QUANTIZED_RULES,
        *ACT_ORDER_RULES,
        *SERVING_RULES,
        *DRAFT_VOCAB_RULES,
    ]
