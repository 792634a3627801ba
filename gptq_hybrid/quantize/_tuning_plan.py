"""What the plan of a run says of tuning."""

from __future__ import annotations

from gptq_hybrid.common.memory import free_memory
from gptq_hybrid.common.units import size_text
from gptq_hybrid.recipes import TuneSettings, TuneSizes

# The share of a GPU that a run may plan with; the rest is for kernels, the CUDA context and fragmentation.
_USABLE = 0.9


def tuning_facts(
    settings: TuneSettings | None, sizes: TuneSizes | None, memory: int, gpu: str | None
) -> list[tuple[str, str]]:
    """Return (what, value) pairs for the screen; none for a recipe without ``[tune]``.

    Args:
        settings: of the recipe.
        sizes: what they need.
        memory: bytes of main memory.
        gpu: name of the GPU; None without one.
    """
    if settings is None or sizes is None:
        return []
    parts = []
    if settings.align_tokens:
        parts.append(f"codes rounded again on at most {settings.align_tokens:,} tokens of the calibration")
    if settings.steps:
        steps = f"{settings.steps:,} steps of {settings.tokens:,} tokens"
        parts.append(f"{steps}, on {settings.documents:,} documents more than --samples")
    facts = [
        ("tuning", "; ".join(parts)),
        ("", f"about {size_text(memory)} of main memory (estimate)"),
    ]
    if gpu is not None:
        facts.append(("", f"about {size_text(sizes.gpu)} of GPU memory (estimate; never run on a GPU)"))
    return facts


def tuning_warnings(sizes: TuneSizes | None, memory: int, gpu: str | None, gpu_bytes: int) -> list[str]:
    """Return a sentence for each memory that tuning does not fit."""
    warnings = []
    if memory > (free := free_memory()):
        warnings.append(
            f"tuning takes about {size_text(memory)} of main memory, and {size_text(free)} are free: give fewer "
            "`align_tokens`, `tokens` or `documents` in the recipe's [tune], or it will swap or be killed"
        )
    if sizes is not None and gpu is not None and sizes.gpu > int(gpu_bytes * _USABLE):
        warnings.append(
            f"tuning takes about {size_text(sizes.gpu)} of GPU memory; {gpu} has {size_text(gpu_bytes)}"
        )
    return warnings
