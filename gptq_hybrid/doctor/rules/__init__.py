"""The rules that this project ships, in the order in which their findings are reported."""

from .act_order import ACT_ORDER_RULES
from .config import CONFIG_RULES
from .draft_vocab import DRAFT_VOCAB_RULES
from .index import INDEX_RULES
from .mtp import MTP_RULES
from .mtp_quantization import MTP_QUANTIZATION_RULES
from .quantization_config import QUANTIZATION_CONFIG_RULES
from .quantization_values import QUANTIZATION_VALUES_RULES
from .serving import SERVING_RULES
from .values import VALUES_RULES
from .weights import WEIGHT_RULES

BUILTIN_RULES = (
    *INDEX_RULES,
    *MTP_RULES,
    *MTP_QUANTIZATION_RULES,
    *QUANTIZATION_CONFIG_RULES,
    *QUANTIZATION_VALUES_RULES,
    *WEIGHT_RULES,
    *VALUES_RULES,
    *ACT_ORDER_RULES,
    *CONFIG_RULES,
    *SERVING_RULES,
    *DRAFT_VOCAB_RULES,
)

__all__ = ["BUILTIN_RULES"]
