"""Logs of losses as quantizing a deep model leaves them, made from a seed."""

from __future__ import annotations

import random
from dataclasses import replace

from gptq_hybrid.losses import ModuleRecord

KINDS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "linear_attn.out_proj")
PREFIX = "model.language_model.layers"


def records(layers: int = 16, seed: int = 0) -> dict[str, ModuleRecord]:
    """Healthy modules whose relative errors scatter by some 20 % about one level a kind."""
    drawn = random.Random(seed)
    made = {}
    for layer in range(layers):
        for level, kind in enumerate(KINDS, 1):
            error = 0.002 * level * drawn.lognormvariate(0, 0.2)
            name = f"{PREFIX}.{layer}.{kind}"
            made[name] = ModuleRecord(
                name,
                columns=256,
                tokens=4096,
                loss=error / 4096,
                damp=0.01,
                relative_error=error,
                dead_columns=0,
                outcome="gptq",
                damp_asked=0.01,
                floor=0.0,
                nonfinite_columns=0,
            )
    return made


def changed(made: dict[str, ModuleRecord], module: str, **values: object) -> dict[str, ModuleRecord]:
    """The same with one module, such as ``7.mlp.up_proj``, changed."""
    name = f"{PREFIX}.{module}"
    return {**made, name: replace(made[name], **values)}  # type: ignore[arg-type]
