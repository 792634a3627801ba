"""What must be true of a loaded MTP head. Torch and plain data only; nothing of vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Parameters that hold the matrix itself, and those that scale it. Formats have others (qzeros, g_idx,
# input scales, weight_shape) that may legitimately be absent, zero or left at a default.
_MATRICES = frozenset({"weight", "qweight", "weight_packed"})
_SCALES = frozenset({"scales", "weight_scale", "weight_scale_inv"})
# Packed values mean nothing without their scales; a fused parameter counts as loaded when one shard's came.
_NEEDED_BESIDE = {"qweight": "scales", "weight_packed": "weight_scale"}
_COMPANIONS = ("scale", "zero", "g_idx", "bias", "shape")
# 32 MiB of BF16 at a time, so that the check does not raise the peak memory of loading.
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Arrival:
    """A tensor of the checkpoint as it came by."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def expected_tensors(text_config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the dense head that a text config calls for.

    Raises:
        HybridError: a config this project does not know.
    """
    from gptq_hybrid.checkpoint import layout_for

    config = {**text_config, "model_type": "qwen3_5_text"}  # vLLM has renamed it for the draft
    return {spec.name: spec.shape for spec in layout_for(config).mtp}


def packed_tensors(
    expected: Mapping[str, tuple[int, ...]],
    quantization_config: Mapping[str, Any] | None,
    packed: Mapping[str, Sequence[str]],
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the head's linears as a GPTQ config would have them packed; none for another format.

    Bits and group size are those of the fused module, which is what vLLM asks ``dynamic`` about.
    """
    from gptq_hybrid.checkpoint import LinearSpec
    from gptq_hybrid.checkpoint.formats import GPTQ, declared_format

    if quantization_config is None or declared_format(quantization_config) is not GPTQ:
        return {}
    fused_by = {shard: whole for whole, shards in packed.items() for shard in shards}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in expected.items():
        module = name.removesuffix(".weight")
        parent, _, last = module.rpartition(".")
        if len(shape) == 2:
            asked = LinearSpec(f"{parent}.{fused_by.get(last, last)}", *shape)
            for suffix, (_, packed_shape) in (GPTQ.expected(quantization_config, asked) or {}).items():
                shapes[f"{module}.{suffix}"] = packed_shape
    return shapes


def checkpoint_name(name: str) -> str | None:
    """``name`` from its ``mtp`` component on; None if it has none."""
    parts = name.split(".")
    return ".".join(parts[parts.index("mtp") :]) if "mtp" in parts else None


def missing(
    expected: Iterable[str], arrived: Iterable[str], packed: Mapping[str, Sequence[str]]
) -> list[str]:
    """Expected tensors that came by neither dense nor quantized, nor fused the way vLLM fuses them.

    Of a packed linear, the scales that did not come by.
    """
    arrived = list(arrived)
    modules = {
        name.rpartition(".")[0]
        for name in arrived
        if not any(companion in name.rpartition(".")[2] for companion in _COMPANIONS)
    }
    fused_by = {shard: whole for whole, shards in packed.items() for shard in shards}
    absent = []
    for name in expected:
        module = name.removesuffix(".weight")
        parent, _, last = module.rpartition(".")
        if module not in modules and f"{parent}.{fused_by.get(last, last)}" not in modules:
            absent.append(name)
    names = set(arrived)
    for name in arrived:
        module, _, suffix = name.rpartition(".")
        beside = _NEEDED_BESIDE.get(suffix)
        if beside and f"{module}.{beside}" not in names:
            absent.append(f"{module}.{beside}")
    return absent


def misshapen(
    expected: Mapping[str, tuple[int, ...]],
    arrived: Mapping[str, Arrival],
    packed_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[str]:
    """Tensors of another shape than the model's; vLLM silently takes a part of a dense one that is too tall.

    ``packed_shapes``: of packed linears, by tensor (:func:`packed_tensors`).
    """
    wrong = [
        (name, shape)
        for name, shape in expected.items()
        if name in arrived and arrived[name].dtype.is_floating_point and arrived[name].shape != shape
    ]
    wrong += [
        (name, shape)
        for name, shape in (packed_shapes or {}).items()
        if name in arrived and arrived[name].shape != shape
    ]
    return [
        f"{name} is {list(arrived[name].shape)}; the model calls for {list(shape)}" for name, shape in wrong
    ]


def cast_raw(
    arrived: Mapping[str, Arrival],
    parameters: Mapping[str, torch.Tensor],
    packed: Mapping[str, Sequence[str]],
) -> list[str]:
    """One-byte tensors that ended in a wider floating-point parameter: their scales were never applied."""
    fused_by = {shard: whole for whole, shards in packed.items() for shard in shards}
    found = []
    for name, arrival in arrived.items():
        if arrival.dtype.itemsize != 1 or not name.endswith(".weight"):
            continue
        module = name.removesuffix(".weight").replace("mtp.", "model.", 1)
        parent, _, last = module.rpartition(".")
        parameter = parameters.get(f"{parent}.{fused_by.get(last, last)}.weight")
        if parameter is not None and parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1:
            found.append(f"{name} came as {arrival.dtype}, without scales, for a {parameter.dtype} parameter")
    return found


def head_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters of the head itself by name. Embeddings and ``lm_head`` are the target's and are left out."""
    names = _MATRICES | _SCALES
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith("model.")
        and "embed_tokens" not in name
        and name.rpartition(".")[2] in names
        and parameter.numel()
    }


def not_loaded(
    parameters: Mapping[str, torch.Tensor], loaded: set[str] | None, online: Iterable[str]
) -> list[str]:
    """Parameters the loader does not report as loaded; ``online`` are modules quantized while loading."""
    if loaded is None:
        return []
    exempt = set(online)
    return [name for name in parameters if name not in loaded and name.rpartition(".")[0] not in exempt]


def bad_values(parameters: Mapping[str, torch.Tensor], rows: Mapping[str, Sequence[int]]) -> list[str]:
    """Matrices of nothing but zeros (packed: of one value), and parameters with NaN or infinity.

    ``rows`` gives, by module, how many outputs each shard of a fused parameter has; each is judged by itself.
    Vectors may be zero: the norms of this family scale by 1 + w.
    """
    found = []
    for name, parameter in parameters.items():
        module, _, kind = name.rpartition(".")
        parts = _shards(parameter.data, rows.get(module, ()), kind)
        for number, part in enumerate(parts):
            label = name if len(parts) == 1 else f"{name} (shard {number})"
            if not part.dtype.is_floating_point and _uniform(part):
                found.append(f"{label} holds one value over and over")
                continue
            peak = _peak(part)
            if peak is None:
                continue
            if not _finite(peak):
                found.append(f"{label} holds NaN or infinite values")
            elif peak == 0 and part.dim() > 1 and kind not in _SCALES:
                found.append(f"{label} holds only zeros")
    return found


def _shards(tensor: torch.Tensor, rows: Sequence[int], kind: str) -> list[torch.Tensor]:
    # GPTQ's tensors have the outputs last, a plain weight has them first.
    along = {"weight": 0, "qweight": 1, "scales": 1}.get(kind)
    if along is not None and len(rows) > 1 and tensor.dim() == 2 and sum(rows) == tensor.shape[along]:
        return list(tensor.split(list(rows), dim=along))
    return [tensor]


def _uniform(tensor: torch.Tensor) -> bool:
    """Whether an integer tensor holds one value throughout."""
    if tensor.is_meta or not tensor.numel():
        return False
    first = tensor.flatten()[0] if tensor.is_contiguous() else tensor[(0,) * tensor.dim()]
    return all(bool((chunk == first).all()) for chunk in _chunks(tensor))


def _peak(tensor: torch.Tensor) -> float | None:
    """The largest magnitude, NaN if there is one; None where there is no data to look at."""
    if tensor.is_meta or not tensor.numel():
        return None
    peak = 0.0
    for chunk in _chunks(tensor):
        if not chunk.dtype.is_floating_point:
            if bool(chunk.any()):
                return 1.0
            continue
        wide = chunk.float() if chunk.dtype.itemsize == 1 else chunk
        value = float(wide.abs().amax())
        if not _finite(value):
            return value
        peak = max(peak, value)
    return peak


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if tensor.dim() == 0:
        yield tensor
        return
    row = max(1, tensor.numel() // tensor.shape[0])
    yield from tensor.split(max(1, _CHUNK // row))


def _finite(value: float) -> bool:
    return value - value == 0
