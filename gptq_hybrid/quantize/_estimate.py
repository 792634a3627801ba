"""What a run will need, from the layout alone. Estimates, and labelled so wherever they are shown."""

from __future__ import annotations

from math import prod

from gptq_hybrid.checkpoint import TensorLayout

# Hessian, its permuted copy, the Cholesky factor and its inverse coexist while one module is solved.
_HESSIAN_COPIES = 4
# Weight, working copy, result and losses of that module, in float32.
_WEIGHT_COPIES = 4


def quantized_bytes(layout: TensorLayout, bits: int, group_size: int) -> int:
    """Bytes of all safetensors files: packed weights, F16 scales, qzeros, int32 g_idx, the rest in BF16."""
    total = 2 * sum(prod(spec.shape) for spec in (*layout.plain, *layout.vision, *layout.mtp))
    for linear in layout.quantized:
        groups = 1 if group_size == -1 else -(-linear.in_features // group_size)
        total += linear.in_features * linear.out_features * bits // 8
        total += groups * linear.out_features * 2 + groups * linear.out_features * bits // 8
        total += linear.in_features * 4
    return total


def hidden_state_bytes(hidden: int, samples: int, max_length: int) -> int:
    """Inputs and outputs of one layer over the whole calibration set, BF16."""
    return 2 * samples * max_length * hidden * 2


def working_bytes(layout: TensorLayout) -> int:
    """One layer's weights in BF16 and the solver's matrices for its widest module."""
    first: dict[str, int] = {}
    for linear in layout.quantized:
        number = linear.name.removeprefix(layout.layers_prefix).split(".")[1]
        first[number] = first.get(number, 0) + 2 * linear.in_features * linear.out_features
    widest = max(layout.quantized, key=lambda linear: linear.in_features)
    solver = (
        _HESSIAN_COPIES * widest.in_features**2 + _WEIGHT_COPIES * widest.in_features * widest.out_features
    )
    return max(first.values()) + 4 * solver
