"""GPUs that people serve the 27B on: what a driver calls them, their memory, their compute capability.

Flags of memory are computed from these and from the checkpoint (``gptq_hybrid.memory``), so none stand here.
"""

from __future__ import annotations

from gptq_hybrid.hooks import GpuProfile

_AMPERE, _AMPERE_GEFORCE, _ADA, _HOPPER = (8, 0), (8, 6), (8, 9), (9, 0)
_BLACKWELL, _BLACKWELL_GEFORCE = (10, 0), (12, 0)
_SHEET = "derived: memory, bandwidth and architecture of NVIDIA's data sheet"
# Bandwidth of the memory in GB/s, and dense 16-bit TFLOP/s with FP32 accumulation, by the data sheets; no tensor
# rate where a sheet states one for sparse matrices alone.
_SPEEDS: dict[str, tuple[float, float]] = {
    "A10": (600, 125),
    "RTX 3090": (936, 71),
    "RTX A5000": (768, 0),
    "RTX A6000": (768, 155),
    "A40": (696, 150),
    "A100 40GB": (1555, 312),
    "A100 80GB": (1935, 312),
    "L4": (300, 121),
    "RTX 4090": (1008, 165),
    "RTX 5000 Ada": (576, 0),
    "RTX 6000 Ada": (960, 364),
    "L40": (864, 181),
    "L40S": (864, 362),
    "RTX 5090": (1792, 209),
    "RTX PRO 6000": (1792, 0),
    "H100": (3350, 989),
    "H200": (4800, 989),
    "B200": (8000, 2250),
}


def _card(
    name: str, capability: tuple[int, int], memory_gib: float, *device_names: str, source: str = _SHEET
) -> GpuProfile:
    bandwidth, dense = _SPEEDS[name]
    return GpuProfile(
        name, device_names or (name,), capability, memory_gib, (), source, bandwidth * 1e9, dense * 1e12
    )


# In the order of looking: a name that holds another one comes later, and wins.
CARDS = (
    _card("A10", _AMPERE_GEFORCE, 22.5, "NVIDIA A10"),
    _card("RTX 3090", _AMPERE_GEFORCE, 24.0),
    _card("RTX A5000", _AMPERE_GEFORCE, 24.0),
    _card("RTX A6000", _AMPERE_GEFORCE, 48.0),
    _card("A40", _AMPERE_GEFORCE, 45.0, "NVIDIA A40"),
    _card("A100 40GB", _AMPERE, 40.0, "A100-SXM4-40GB", "A100-PCIE-40GB"),
    _card("A100 80GB", _AMPERE, 80.0, "A100-SXM4-80GB", "A100 80GB"),
    _card("L4", _ADA, 22.5, "NVIDIA L4"),
    _card("RTX 4090", _ADA, 24.0),
    _card("RTX 5000 Ada", _ADA, 32.0),
    _card("RTX 6000 Ada", _ADA, 48.0),
    _card("L40", _ADA, 45.0, "NVIDIA L40"),
    _card(
        "L40S",
        _ADA,
        45.0,
        "L40S",
        source="measured: the reference artifact's model card ran 8 sequences and 200,000 tokens, vLLM 0.19.1",
    ),
    _card("RTX 5090", _BLACKWELL_GEFORCE, 32.0),
    _card("RTX PRO 6000", _BLACKWELL_GEFORCE, 96.0),
    _card("H100", _HOPPER, 80.0, "H100"),
    _card("H200", _HOPPER, 140.0, "H200"),
    _card("B200", _BLACKWELL, 180.0, "B200"),
)
