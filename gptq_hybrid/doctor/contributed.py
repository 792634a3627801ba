"""What plugins bring to the doctor: rules, and profiles of GPUs."""

from __future__ import annotations

from gptq_hybrid.hooks import GpuProfile, contributions

from .findings import Rule


def check_rules() -> list[Rule]:
    """Return every rule, built in or of a plugin, in the order in which they run."""
    return contributions("qwen36_check_rules")


def gpu_profiles() -> list[GpuProfile]:
    """Return the GPU models known by name; later ones win over earlier ones."""
    return contributions("qwen36_gpu_profiles")
