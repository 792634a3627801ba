"""Families of architectures: which one a ``config.json`` belongs to, and the tensors its checkpoint must hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptq_hybrid.checkpoint.layout import Family, TensorLayout
from gptq_hybrid.common.errors import UnsupportedArchitectureError
from gptq_hybrid.hooks import contributions


def families() -> list[Family]:
    """Return every family, built in or of a plugin."""
    return contributions("qwen36_families")


def family_for(config: Mapping[str, Any]) -> Family:
    """Return the family that recognises a parsed ``config.json``; a plugin's wins over a built-in one.

    Raises:
        UnsupportedArchitectureError: no family does.
    """
    registered = families()
    for family in reversed(registered):
        if family.matches(config):
            return family
    model_types = sorted({model_type for family in registered for model_type in family.model_types})
    raise UnsupportedArchitectureError(
        f"model_type {config.get('model_type')!r} (architectures {config.get('architectures')!r}) is not supported",
        remedy=f"Supported model types: {', '.join(model_types)}.",
    )


def layout_for(config: Mapping[str, Any]) -> TensorLayout:
    """Return the tensors that a checkpoint with this ``config.json`` must hold.

    Raises:
        UnsupportedArchitectureError: no family recognises it.
        CheckpointError: a dimension is missing or absurd.
    """
    return family_for(config).layout(config)
