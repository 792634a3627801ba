"""What third parties can add, one hook a thing.

A plugin is a module (or object) with functions marked :data:`hookimpl`, named in
the ``qwen36`` entry-point group of its distribution. What this project ships is
registered through the same hooks. Every hook returns a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from .calibration import CalibrationSource
    from .findings import Rule
    from .gpu import GpuProfile
    from .layout import Family

hookspec = pluggy.HookspecMarker("qwen36")
hookimpl = pluggy.HookimplMarker("qwen36")


@hookspec
def qwen36_families() -> list[Family]:  # type: ignore[empty-body]
    """Families of architectures: how to recognise one and which tensors it holds."""


@hookspec
def qwen36_check_rules() -> list[Rule]:  # type: ignore[empty-body]
    """Rules run over a checkpoint before serving and after writing."""


@hookspec
def qwen36_gpu_profiles() -> list[GpuProfile]:  # type: ignore[empty-body]
    """GPU models: memory, and the flags `vllm serve` should get there."""


@hookspec
def qwen36_calibration_sources() -> list[CalibrationSource]:  # type: ignore[empty-body]
    """Where calibration rows come from: each source says which ``--calibration`` values are its own."""


@hookspec
def qwen36_commands(app: typer.Typer) -> None:
    """Add commands to the ``qwen36`` command line."""
