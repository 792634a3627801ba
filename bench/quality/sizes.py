"""How large each experiment's checkpoint is with a model's shapes: computed from its layout, not measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from bench.full_size import CONFIG as CONFIG_27B
from bench.quality.grid import BY_NAME, W4, Experiment
from gptq_hybrid.checkpoint import LinearSpec, TensorLayout, TensorSpec, layout_for
from gptq_hybrid.recipes.sizes import packed_bytes, quantized_bytes

_MINI = Path(__file__).parents[1] / "mini" / "checkpoint" / "config.json"
_RTN_BITS = {"w4": 4, "w4-plain": 4, "w8": 8}


@dataclass(frozen=True, slots=True)
class Size:
    """``total``: bytes of all safetensors files, heads, embeddings and vision tower included.

    ``bits``: per weight of the linears that are quantized in the layers, with scales, zeros and g_idx.
    """

    total: int
    bits: float


@cache
def layout_27b() -> TensorLayout:
    """The published 27B's."""
    return layout_for(CONFIG_27B)


@cache
def layout_mini() -> TensorLayout:
    """The mini model's."""
    return layout_for(json.loads(_MINI.read_text(encoding="utf-8")))


def size_of(experiment: Experiment, layout: TensorLayout) -> Size:
    """Bytes of ``experiment`` with the shapes of ``layout``; rounded heads and gates as GPTQ or FP8 stores them."""
    settings = _settings(experiment)
    total = quantized_bytes(layout, settings)
    linears = sum(2 * prod(linear.weight.shape) for linear in layout.quantized)
    others = quantized_bytes(layout, {**settings, "dynamic": {r"-:.": {}}}) - linears
    bits = 8 * (total - others) / (linears / 2)
    specs = [spec for spec in layout.dense if len(spec.shape) == 2]
    for spec in specs:
        # Patterns overlap nowhere in the grid; the first to match decides, as in `quantizer.weights`.
        how = next((how for p, how in experiment.overlay.items() if re.match(p, spec.name)), None)
        if how is not None:
            total += _stored(spec, how) - 2 * prod(spec.shape)
    return Size(total, bits)


def extra_bytes(name: str, control: str, layout: TensorLayout) -> int:
    """Bytes that experiment ``name`` takes more than ``control``."""
    return size_of(BY_NAME[name], layout).total - size_of(BY_NAME[control], layout).total


def _settings(experiment: Experiment) -> Mapping[str, Any]:
    if experiment.base is not None:
        return _settings(BY_NAME[experiment.base])
    if experiment.rtn is not None:
        return {**W4, "bits": experiment.rtn["bits"]}
    assert experiment.settings is not None
    return experiment.settings


def _stored(spec: TensorSpec, how: str) -> int:
    rows, columns = spec.shape
    if how == "fp8":
        return rows * columns + 4 * rows
    return packed_bytes(LinearSpec(spec.name, rows, columns), _RTN_BITS[how], 128)
