"""What third parties can add, one hook a thing.

A plugin is a module or object whose functions are marked :data:`hookimpl`. Its distribution names it in the
``qwen36`` entry-point group. What this project ships is registered through the same hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from .contracts import CalibrationSource, GpuProfile

if TYPE_CHECKING:
    import typer

    from gptq_hybrid.checkpoint import Family
    from gptq_hybrid.doctor import Rule

hookspec = pluggy.HookspecMarker("qwen36")
hookimpl = pluggy.HookimplMarker("qwen36")


@hookspec
def qwen36_families() -> list[Family]:  # type: ignore[empty-body]
    """Return families of architectures: how to recognise one and which tensors it holds."""


@hookspec
def qwen36_check_rules() -> list[Rule]:  # type: ignore[empty-body]
    """Return rules to run over a checkpoint before serving and after writing."""


@hookspec
def qwen36_gpu_profiles() -> list[GpuProfile]:  # type: ignore[empty-body]
    """Return GPU models: their memory, and the flags that ``vllm serve`` should get there."""


@hookspec
def qwen36_calibration_sources() -> list[CalibrationSource]:  # type: ignore[empty-body]
    """Return sources of calibration rows; each says which ``--calibration`` values are its own."""


@hookspec
def qwen36_commands(app: typer.Typer) -> None:
    """Add commands to the ``qwen36`` command line."""
