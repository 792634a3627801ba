"""What a run will need, in bytes, from the layout alone. These are estimates, and are called so wherever shown."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from gptq_hybrid.checkpoint import LinearSpec, TensorLayout
from gptq_hybrid.checkpoint.formats.gptq import settings as module_settings
from gptq_hybrid.checkpoint.quantization import dynamic_rule

from .packaging import Packaging

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
    """Size of all safetensors files: packed weights, F16 scales, qzeros, int32 g_idx, the rest in BF16.

    Args:
        layout: the checkpoint's.
        settings: of a recipe; ``bits``, ``group_size`` and ``dynamic`` count.
        packaging: of a recipe; both heads in BF16 and a vision tower by default.
        keep_mtp: whether there is an MTP head.
    """
    packaging = packaging or Packaging()
    group_size = int(settings["group_size"])
    total = sum(_module_bytes(linear, settings) for linear in layout.quantized)
    packed: dict[str, int] = {}
    head = layout.output_head
    if head is not None and packaging.lm_head_bits < 16:
        packed[head.weight.name] = packed_bytes(head, packaging.lm_head_bits, group_size)
    if packaging.mtp_bits < 16:
        packed |= {
            linear.weight.name: packed_bytes(linear, packaging.mtp_bits, group_size)
            for linear in layout.mtp_linears
        }
    rest = [*layout.plain, *([] if packaging.text_only else layout.vision), *(layout.mtp if keep_mtp else ())]
    return total + sum(packed.get(spec.name, 2 * prod(spec.shape)) for spec in rest)


def size_changes(
    layout: TensorLayout, settings: Mapping[str, Any], packaging: Packaging, *, keep_mtp: bool = True
) -> list[tuple[str, int]]:
    """List what a recipe does beyond one width for all modules, both heads in BF16 and a vision tower.

    Returns:
        (what, bytes more or less), one entry a choice.
    """
    base = {**settings, "dynamic": {}}
    plain = quantized_bytes(layout, base, keep_mtp=keep_mtp)
    changes: list[tuple[str, int]] = []
    for what, part in (
        (f"lm_head in {packaging.lm_head_bits} bit", Packaging(lm_head_bits=packaging.lm_head_bits)),
        (f"MTP head in {packaging.mtp_bits} bit", Packaging(mtp_bits=packaging.mtp_bits)),
        ("no vision tower", Packaging(text_only=packaging.text_only)),
    ):
        change = quantized_bytes(layout, base, part, keep_mtp=keep_mtp) - plain
        if change:
            changes.append((what, change))
    by_width: dict[str, list[int]] = {}
    for linear in layout.quantized:
        rule = dynamic_rule(settings, linear.name)
        change = _module_bytes(linear, settings) - _module_bytes(linear, base)
        if rule is False or change:
            width = "BF16" if rule is False else f"{module_settings(settings, linear.name)[0]} bit"
            by_width.setdefault(width, []).append(change)
    changes += [(f"{len(parts)} modules in {width}", sum(parts)) for width, parts in by_width.items()]
    return changes


def packed_bytes(linear: LinearSpec, bits: int, group_size: int) -> int:
    """Size of one linear in GPTQ's layout: qweight, F16 scales, qzeros, int32 g_idx."""
    groups = 1 if group_size == -1 else -(-linear.in_features // group_size)
    weights = linear.in_features * linear.out_features * bits // 8
    return weights + groups * linear.out_features * (2 * 8 + bits) // 8 + linear.in_features * 4


def layer_count(layout: TensorLayout) -> int:
    """Count the layers with modules to quantize."""
    return len({_layer(layout, linear) for linear in layout.quantized})


def packed_modules_bytes(layout: TensorLayout, settings: Mapping[str, Any]) -> int:
    """Size of the modules that gptqmodel packs: what the state of a finished run holds of them."""
    return sum(
        _module_bytes(linear, settings)
        for linear in layout.quantized
        if dynamic_rule(settings, linear.name) is not False
    )


def dense_state_bytes(layout: TensorLayout, settings: Mapping[str, Any]) -> int:
    """Size, in BF16, of what gptqmodel also writes into each state: vision tower, norms, modules left out.

    Seen in a state: neither embeddings nor the output head are loaded while layers are quantized.
    """
    loaded = [*layout.vision, *(spec for spec in layout.plain if spec.name.startswith(layout.layers_prefix))]
    left_out = [linear for linear in layout.quantized if dynamic_rule(settings, linear.name) is False]
    return sum(2 * prod(spec.shape) for spec in loaded) + sum(_module_bytes(m, settings) for m in left_out)


def hidden_state_bytes(hidden: int, tokens: int) -> int:
    """Size, in BF16, of the inputs and outputs of one layer for ``tokens`` calibration tokens."""
    return 2 * tokens * hidden * 2


def projection_input_bytes(layout: TensorLayout, tokens: int) -> int:
    """Size, in BF16, of the inputs of a mixer's output projection, which ``upstream.speedups.mixer_once`` keeps."""
    last = ("linear_attn.out_proj", "self_attn.o_proj")
    return 2 * tokens * max((m.in_features for m in layout.quantized if m.name.endswith(last)), default=0)


def native_bytes(layout: TensorLayout, settings: Mapping[str, Any], tokens: int) -> int:
    """Size, in BF16, of the unquantized model's inputs that GPTAQ keeps; 0 for a recipe without ``gptaq``.

    It keeps the inputs of every quantized linear of a layer; one that two linears share counts twice.
    """
    if not settings.get("gptaq"):
        return 0
    widths: dict[str, int] = {}
    for linear in layout.quantized:
        if dynamic_rule(settings, linear.name) is not False:
            layer = _layer(layout, linear)
            widths[layer] = widths.get(layer, 0) + linear.in_features
    return 2 * tokens * max(widths.values(), default=0)


def working_bytes(layout: TensorLayout, *, gptaq: bool = False) -> int:
    """Size of one layer's weights in BF16 and of the solver's matrices for its widest module."""
    weights: dict[str, int] = {}
    for linear in layout.quantized:
        layer = _layer(layout, linear)
        weights[layer] = weights.get(layer, 0) + 2 * linear.in_features * linear.out_features
    widest = max(layout.quantized, key=lambda linear: linear.in_features)
    squares = _HESSIAN_COPIES + (_GPTAQ_COPIES if gptaq else 0)
    solver = squares * widest.in_features**2 + _WEIGHT_COPIES * widest.in_features * widest.out_features
    return max(weights.values()) + 4 * solver


def _module_bytes(linear: LinearSpec, settings: Mapping[str, Any]) -> int:
    if dynamic_rule(settings, linear.name) is False:
        return 2 * linear.in_features * linear.out_features
    return packed_bytes(linear, *module_settings(settings, linear.name))


def _layer(layout: TensorLayout, linear: LinearSpec) -> str:
    """Number of a linear's layer, as in its name."""
    return linear.name.removeprefix(f"{layout.layers_prefix}.").partition(".")[0]
