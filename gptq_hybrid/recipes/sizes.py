"""What a run will need, from the layout alone. Estimates, and labelled so wherever they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from gptq_hybrid.checkpoint import LinearSpec, TensorLayout
from gptq_hybrid.checkpoint.formats.gptq import settings as module_settings
from gptq_hybrid.checkpoint.quantization import dynamic_rule
from gptq_hybrid.recipes.packaging import Packaging, mtp_linears, output_head

# Hessian, its permuted copy, the Cholesky factor and its inverse coexist while one module is solved.
_HESSIAN_COPIES = 4
# GPTAQ's besides: the product of inputs and their differences, permuted too, the correction, H for the record.
_GPTAQ_COPIES = 4
# Weight, working copy, result and losses of that module, in float32.
_WEIGHT_COPIES = 4


def quantized_bytes(
    layout: TensorLayout,
    settings: Mapping[str, Any],
    packaging: Packaging | None = None,
    *,
    keep_mtp: bool = True,
) -> int:
    """Bytes of all safetensors files: packed weights, F16 scales, qzeros, int32 g_idx, the rest in BF16.

    ``settings`` are a recipe's: ``bits``, ``group_size`` and ``dynamic``.
    """
    packaging = packaging or Packaging()
    group_size = int(settings["group_size"])
    total = sum(_module_bytes(linear, settings) for linear in layout.quantized)
    packed: dict[str, int] = {}
    head = output_head(layout)
    if head is not None and packaging.lm_head_bits < 16:
        packed[head.weight.name] = packed_bytes(head, packaging.lm_head_bits, group_size)
    if packaging.mtp_bits < 16:
        packed |= {
            linear.weight.name: packed_bytes(linear, packaging.mtp_bits, group_size)
            for linear in mtp_linears(layout)
        }
    rest = [*layout.plain, *([] if packaging.text_only else layout.vision), *(layout.mtp if keep_mtp else ())]
    return total + sum(packed.get(spec.name, 2 * prod(spec.shape)) for spec in rest)


def choices(
    layout: TensorLayout, settings: Mapping[str, Any], packaging: Packaging, *, keep_mtp: bool = True
) -> list[tuple[str, int]]:
    """What a recipe does differently from all modules alike, both heads in BF16 and a vision tower.

    Returns:
        (what, bytes more or less), one entry a choice.
    """
    base = {**settings, "dynamic": {}}
    plain = quantized_bytes(layout, base, keep_mtp=keep_mtp)
    out: list[tuple[str, int]] = []
    for what, part in (
        (f"lm_head in {packaging.lm_head_bits} bit", Packaging(lm_head_bits=packaging.lm_head_bits)),
        (f"MTP head in {packaging.mtp_bits} bit", Packaging(mtp_bits=packaging.mtp_bits)),
        ("no vision tower", Packaging(text_only=packaging.text_only)),
    ):
        change = quantized_bytes(layout, base, part, keep_mtp=keep_mtp) - plain
        if change:
            out.append((what, change))
    by_kind: dict[str, list[int]] = {}
    for linear in layout.quantized:
        rule = dynamic_rule(settings, linear.name)
        change = _module_bytes(linear, settings) - _module_bytes(linear, base)
        if rule is False or change:
            bits = "BF16" if rule is False else f"{module_settings(settings, linear.name)[0]} bit"
            by_kind.setdefault(bits, []).append(change)
    out += [(f"{len(changes)} modules in {bits}", sum(changes)) for bits, changes in by_kind.items()]
    return out


def _module_bytes(linear: LinearSpec, settings: Mapping[str, Any]) -> int:
    if dynamic_rule(settings, linear.name) is False:
        return 2 * linear.in_features * linear.out_features
    return packed_bytes(linear, *module_settings(settings, linear.name))


def packed_bytes(linear: LinearSpec, bits: int, group_size: int) -> int:
    """Bytes of one linear in GPTQ's layout: qweight, F16 scales, qzeros, int32 g_idx."""
    groups = 1 if group_size == -1 else -(-linear.in_features // group_size)
    weights = linear.in_features * linear.out_features * bits // 8
    return weights + groups * linear.out_features * (2 * 8 + bits) // 8 + linear.in_features * 4


def layer_count(layout: TensorLayout) -> int:
    """Layers with modules to quantize."""
    return len({linear.name.removeprefix(layout.layers_prefix).split(".")[1] for linear in layout.quantized})


def packed_modules_bytes(layout: TensorLayout, settings: Mapping[str, Any]) -> int:
    """Bytes of the modules that gptqmodel packs: what the state of a finished run holds of them."""
    return sum(
        _module_bytes(linear, settings)
        for linear in layout.quantized
        if dynamic_rule(settings, linear.name) is not False
    )


def dense_state_bytes(layout: TensorLayout, settings: Mapping[str, Any]) -> int:
    """Bytes, in BF16, of what gptqmodel writes into each state of a run besides: tower, norms, modules left out.

    Seen in a state: neither embeddings nor the output head are loaded while layers are quantized.
    """
    loaded = [*layout.vision, *(spec for spec in layout.plain if spec.name.startswith(layout.layers_prefix))]
    left_out = [linear for linear in layout.quantized if dynamic_rule(settings, linear.name) is False]
    return sum(2 * prod(spec.shape) for spec in loaded) + sum(_module_bytes(m, settings) for m in left_out)


def hidden_state_bytes(hidden: int, samples: int, max_length: int) -> int:
    """Inputs and outputs of one layer over the whole calibration set, BF16."""
    return 2 * samples * max_length * hidden * 2


def kept_bytes(layout: TensorLayout, tokens: int) -> int:
    """Inputs of a mixer's last projection, kept between the passes of a layer (``upstream.speedups.mixer_once``), BF16."""
    last = ("linear_attn.out_proj", "self_attn.o_proj")
    return 2 * tokens * max((m.in_features for m in layout.quantized if m.name.endswith(last)), default=0)


def working_bytes(layout: TensorLayout, *, gptaq: bool = False) -> int:
    """One layer's weights in BF16 and the solver's matrices for its widest module."""
    first: dict[str, int] = {}
    for linear in layout.quantized:
        number = linear.name.removeprefix(layout.layers_prefix).split(".")[1]
        first[number] = first.get(number, 0) + 2 * linear.in_features * linear.out_features
    widest = max(layout.quantized, key=lambda linear: linear.in_features)
    squares = _HESSIAN_COPIES + (_GPTAQ_COPIES if gptaq else 0)
    solver = squares * widest.in_features**2 + _WEIGHT_COPIES * widest.in_features * widest.out_features
    return max(first.values()) + 4 * solver
