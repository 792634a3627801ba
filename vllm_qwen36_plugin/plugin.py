"""The consumer's contributions to the ``qwen36`` plugin group."""

from __future__ import annotations

from gptq_hybrid.checkpoint import hookimpl
from gptq_hybrid.checkpoint.gpu import GpuProfile
from vllm_qwen36_plugin.profiles import ADA_PROFILES


@hookimpl
def qwen36_gpu_profiles() -> list[GpuProfile]:
    return list(ADA_PROFILES)
