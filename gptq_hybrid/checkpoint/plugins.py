"""The plugin manager: built-in contributions plus the ``qwen36`` entry-point group."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pluggy

from . import hookspecs
from .calibration import CalibrationSource
from .errors import UnsupportedArchitectureError
from .findings import Rule
from .gpu import GpuProfile
from .layout import Family, TensorLayout

ENTRY_POINT_GROUP = "qwen36"


@cache
def get_plugin_manager() -> pluggy.PluginManager:
    """The one manager of this process, with every installed plugin loaded."""
    from . import _builtin

    manager = pluggy.PluginManager("qwen36")
    manager.add_hookspecs(hookspecs)
    manager.register(_builtin, name="gptq_hybrid.checkpoint")
    manager.load_setuptools_entrypoints(ENTRY_POINT_GROUP)
    return manager


def _collect(contributions: list[list[Any]]) -> list[Any]:
    # pluggy calls the last registered first: reversed, built-ins lead and order is stable.
    return [item for contribution in reversed(contributions) for item in contribution]


def families() -> list[Family]:
    return _collect(get_plugin_manager().hook.qwen36_families())


def check_rules() -> list[Rule]:
    return _collect(get_plugin_manager().hook.qwen36_check_rules())


def gpu_profiles() -> list[GpuProfile]:
    return _collect(get_plugin_manager().hook.qwen36_gpu_profiles())


def calibration_sources() -> list[CalibrationSource]:
    return _collect(get_plugin_manager().hook.qwen36_calibration_sources())


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that recognises a parsed ``config.json``; a plugin's family wins over a built-in one.

    Raises:
        UnsupportedArchitectureError: no family does.
    """
    known = families()
    for family in reversed(known):
        if family.matches(config):
            return family
    raise UnsupportedArchitectureError(
        f"model_type {config.get('model_type')!r} (architectures {config.get('architectures')!r}) is not supported",
        remedy="Supported model types: " + ", ".join(sorted({t for f in known for t in f.model_types})) + ".",
    )


def layout_for(config: Mapping[str, Any]) -> TensorLayout:
    """The tensors a checkpoint with this ``config.json`` must hold.

    Raises:
        UnsupportedArchitectureError: no family recognises it.
        CheckpointError: a dimension is missing or absurd.
    """
    return family_of(config).layout(config)
