"""The consumer's contributions to the ``qwen36`` plugin group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptq_hybrid.hooks import GpuProfile, hookimpl
from vllm_qwen36_plugin.profiles import ADA_PROFILES

if TYPE_CHECKING:
    import typer

    from .prefill.profile import ShippedProfile


@hookimpl
def qwen36_gpu_profiles() -> list[GpuProfile]:
    return list(ADA_PROFILES)


# Tried last by pluggy, which is first in `shipped_profiles`: whatever the order of distributions, a third
# party's profile of the same card comes after and wins.
@hookimpl(trylast=True)
def qwen36_prefill_profiles() -> list[ShippedProfile]:
    # Every check before a start of vLLM scans the plugins; nothing there asks for these.
    from .profiles.ada_prefill import ADA_PREFILL_PROFILES

    return list(ADA_PREFILL_PROFILES)


@hookimpl
def qwen36_commands(app: typer.Typer) -> None:
    from .cli import add_commands

    add_commands(app)
