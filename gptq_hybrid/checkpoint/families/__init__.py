"""Families of architectures: which one a ``config.json`` belongs to, and the tensors it must hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptq_hybrid.checkpoint.layout import Family, TensorLayout
from gptq_hybrid.common.errors import UnsupportedArchitectureError
from gptq_hybrid.hooks import contributions


def families() -> list[Family]:
    """Return every family that is built in or that a plugin brings."""
    return contributions("qwen36_families")


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family that recognises a parsed ``config.json``; a plugin's wins over a built-in one.

    Raises:
        UnsupportedArchitectureError: no family does.
    """
    every = families()
    for family in reversed(every):
        if family.matches(config):
            return family
    raise UnsupportedArchitectureError(
        f"model_type {config.get('model_type')!r} (architectures {config.get('architectures')!r}) is not supported",
        remedy="Supported model types: " + ", ".join(sorted({t for f in every for t in f.model_types})) + ".",
    )


def layout_for(config: Mapping[str, Any]) -> TensorLayout:
    """Return the tensors that a checkpoint with this ``config.json`` must hold.

    Raises:
        UnsupportedArchitectureError: no family recognises it.
        CheckpointError: a dimension is missing or absurd.
    """
    return family_of(config).layout(config)
