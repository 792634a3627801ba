"""What is known of a GPU model. Profiles themselves are contributed through ``qwen36_gpu_profiles``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuProfile:
    """A GPU model.

    ``device_names``: substrings of the name the driver reports. ``memory_gib``:
    what that driver reports as total. ``serve_flags``: flags that `vllm serve`
    should get for a 27B checkpoint there. ``source``: where those come from,
    ``measured: …`` or ``derived: …``.
    """

    name: str
    device_names: tuple[str, ...]
    compute_capability: tuple[int, int]
    memory_gib: float
    serve_flags: tuple[str, ...]
    source: str
