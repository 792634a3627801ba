"""What serving a checkpoint takes of a GPU's memory, from its headers alone. Every figure is derived."""

from .cache import CPU_ALIGNMENT, CacheLayout, cache_layout
from .fit import Fit, fit, parse_size
from .weights import WeightBytes, weight_bytes

__all__ = [
    "CPU_ALIGNMENT",
    "CacheLayout",
    "Fit",
    "WeightBytes",
    "cache_layout",
    "fit",
    "parse_size",
    "weight_bytes",
]
