"""Checks of a loaded MTP head, on torch and plain data; nothing of vLLM.

``packed`` is vLLM's ``packed_modules_mapping``: the shards of each fused module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from gptq_hybrid.doctor.values import Values

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
    """Shape and dtype of a tensor as it arrived from the checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def expected_tensors(text_config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the dense head that a text config calls for.

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
    """Return names and shapes of the head's linears packed as a GPTQ config says; none for another format.

    Bits and group size are those of the fused module, which is what vLLM looks up in ``dynamic``.
    """
    from gptq_hybrid.checkpoint import LinearSpec
    from gptq_hybrid.checkpoint.formats import GPTQ, declared_format

    if quantization_config is None or declared_format(quantization_config) is not GPTQ:
        return {}
    fused_names = _fused_names(packed)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in expected.items():
        module = name.removesuffix(".weight")
        parent, _, last = module.rpartition(".")
        if len(shape) == 2:
            linear = LinearSpec(f"{parent}.{fused_names.get(last, last)}", *shape)
            for suffix, (_, packed_shape) in (GPTQ.expected(quantization_config, linear) or {}).items():
                shapes[f"{module}.{suffix}"] = packed_shape
    return shapes


def checkpoint_name(name: str) -> str | None:
    """Return ``name`` from its ``mtp`` component on; None if it has none."""
    parts = name.split(".")
    return ".".join(parts[parts.index("mtp") :]) if "mtp" in parts else None


def missing(
    expected: Iterable[str], arrived: Iterable[str], packed: Mapping[str, Sequence[str]]
) -> list[str]:
    """List expected tensors that arrived neither dense nor quantized, nor fused the way vLLM fuses them.

    Of a packed linear, list scales that did not arrive.
    """
    arrived = list(arrived)
    modules = {
        name.rpartition(".")[0]
        for name in arrived
        if not any(companion in name.rpartition(".")[2] for companion in _COMPANIONS)
    }
    fused_names = _fused_names(packed)
    absent = []
    for name in expected:
        module = name.removesuffix(".weight")
        parent, _, last = module.rpartition(".")
        if module not in modules and f"{parent}.{fused_names.get(last, last)}" not in modules:
            absent.append(name)
    names = set(arrived)
    for name in arrived:
        module, _, suffix = name.rpartition(".")
        scales = _NEEDED_BESIDE.get(suffix)
        if scales and f"{module}.{scales}" not in names:
            absent.append(f"{module}.{scales}")
    return absent


def misshapen(
    expected: Mapping[str, tuple[int, ...]],
    arrived: Mapping[str, Arrival],
    packed_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[str]:
    """Describe tensors of another shape than the model's.

    vLLM silently takes a part of a dense one that is too tall.

    ``packed_shapes``: those of packed linears, by tensor (:func:`packed_tensors`).
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
    """Describe one-byte tensors that ended in a wider floating-point parameter: their scales were never applied."""
    fused_names = _fused_names(packed)
    problems = []
    for name, arrival in arrived.items():
        if arrival.dtype.itemsize != 1 or not name.endswith(".weight"):
            continue
        module = name.removesuffix(".weight").replace("mtp.", "model.", 1)
        parent, _, last = module.rpartition(".")
        parameter = parameters.get(f"{parent}.{fused_names.get(last, last)}.weight")
        if parameter is not None and parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1:
            problems.append(
                f"{name} came as {arrival.dtype}, without scales, for a {parameter.dtype} parameter"
            )
    return problems


def head_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the head's own parameters by name. Embeddings and ``lm_head`` are the target's and are left out."""
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
    """List parameters that the loader does not report as loaded; ``online`` are modules quantized while loading."""
    if loaded is None:
        return []
    exempt = set(online)
    return [name for name in parameters if name not in loaded and name.rpartition(".")[0] not in exempt]


def bad_values(parameters: Mapping[str, torch.Tensor], shard_sizes: Mapping[str, Sequence[int]]) -> list[str]:
    """Describe matrices of one value, scales of zeros, and parameters with NaN or infinity.

    It judges as ``qwen36 check`` does (``gptq_hybrid.doctor.values``), on all values.

    ``shard_sizes``: by module, the channels of each shard of a fused parameter; each shard is judged by itself.
    Vectors may be zero: the norms of this family scale by 1 + w.
    """
    from gptq_hybrid.doctor.values import role_of, what_is_wrong

    problems = []
    for name, parameter in parameters.items():
        module, _, kind = name.rpartition(".")
        parts = _shards(parameter.data, shard_sizes.get(module, ()), kind)
        for number, part in enumerate(parts):
            label = name if len(parts) == 1 else f"{name} (shard {number})"
            if part.is_meta or not part.numel():
                continue
            if wrong := what_is_wrong(role_of(module, kind, tuple(parameter.shape)), _values(part)):
                problems.append(f"{label} {wrong}")
    return problems


def _fused_names(packed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Map the name of each shard to that of the module vLLM fuses it into."""
    return {shard: fused for fused, shards in packed.items() for shard in shards}


def _shards(tensor: torch.Tensor, sizes: Sequence[int], kind: str) -> list[torch.Tensor]:
    # GPTQ's tensors have the channels last, a plain weight has them first.
    along = {"weight": 0, "qweight": 1, "scales": 1}.get(kind)
    if along is not None and len(sizes) > 1 and tensor.dim() == 2 and sum(sizes) == tensor.shape[along]:
        return list(tensor.split(list(sizes), dim=along))
    return [tensor]


def _values(tensor: torch.Tensor) -> Values:
    """What the values of a tensor with data come to."""
    from gptq_hybrid.doctor.values import Values

    first = tensor[(0,) * tensor.dim()]
    constant, finite = True, True
    for chunk in _chunks(tensor):
        wide = chunk.float() if chunk.dtype.itemsize == 1 and chunk.dtype.is_floating_point else chunk
        if wide.dtype.is_floating_point and finite:
            # The sum of all is cheaper to look at than each; it may overflow where no value is infinite.
            finite = bool(wide.sum().isfinite()) or bool(wide.isfinite().all())
        constant = constant and bool((wide == first.to(wide.dtype)).all())
    zero = constant and tensor.dtype.is_floating_point and not bool(first.float())
    return Values(not finite, zero, constant)


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if tensor.dim() == 0:
        yield tensor
        return
    width = max(1, tensor.numel() // tensor.shape[0])
    yield from tensor.split(max(1, _CHUNK // width))
