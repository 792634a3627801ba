"""What serving a checkpoint takes of a GPU's memory, from its headers alone. Every figure is derived."""

from .cache import CPU_ALIGNMENT, KV_DTYPES, STATE_DTYPES, TRITON_KV_DTYPES, CacheLayout, cache_layout
from .fit import CUDA_SHARE, UTILIZATION, Fit, fit, parse_size
from .running import LEAST, MOST, PARTS, RESERVE, VISION, Running
from .weights import WeightBytes, weight_bytes

__all__ = [
    "CPU_ALIGNMENT",
    "CUDA_SHARE",
    "KV_DTYPES",
    "LEAST",
    "MOST",
    "PARTS",
    "RESERVE",
    "STATE_DTYPES",
    "TRITON_KV_DTYPES",
    "UTILIZATION",
    "VISION",
    "CacheLayout",
    "Fit",
    "Running",
    "WeightBytes",
    "cache_layout",
    "fit",
    "parse_size",
    "weight_bytes",
]
