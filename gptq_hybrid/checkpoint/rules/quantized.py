"""Is every module that should be quantized stored as GPTQ of the declared kind, and nothing else?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gptq_hybrid.checkpoint._checkpoint import Checkpoint
from gptq_hybrid.checkpoint._safetensors import TensorInfo
from gptq_hybrid.checkpoint.findings import Finding, Rule, Severity
from gptq_hybrid.checkpoint.gidx import is_trivial, read_g_idx
from gptq_hybrid.checkpoint.layout import LinearSpec, TensorLayout
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, excluded_by_dynamic, method_of

_REQUANTIZE = "Quantize again: qwen36 quantize ORIGINAL TARGET"


def _gptq(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    config = checkpoint.quantization_config
    return config if config is not None and method_of(config) in GPTQ_METHODS else None


def _finding(rule: str, message: str, remedy: str, tensor: str, file: str | None = None) -> Finding:
    return Finding(rule, Severity.ERROR, message, remedy, tensor, file)


def expected_shapes(linear: LinearSpec, bits: int, group_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each GPTQ tensor of a linear, by suffix; int32 words hold 32/bits values."""
    per_word = 32 // bits
    groups = 1 if group_size == -1 else -(-linear.in_features // group_size)
    return {
        "qweight": ("I32", (linear.in_features // per_word, linear.out_features)),
        "scales": ("F16", (groups, linear.out_features)),
        "qzeros": ("I32", (groups, linear.out_features // per_word)),
        "g_idx": ("I32", (linear.in_features,)),
    }


def _tensors(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    config = _gptq(checkpoint)
    if config is None:
        return
    bits, group_size = int(config.get("bits", 4)), int(config.get("group_size", 128))
    uniform = not any(not key.startswith("-:") for key in (config.get("dynamic") or {}))
    for linear in layout.quantized:
        if excluded_by_dynamic(config, linear.name):
            continue
        for suffix, (_, shape) in expected_shapes(linear, bits, group_size).items():
            name = f"{linear.name}.{suffix}"
            info = checkpoint.loaded.get(name)
            if info is None:
                yield _finding("quantized-missing", f"{name} is missing", f"{_REQUANTIZE}.", name)
            elif uniform and info.shape != shape:
                yield _finding(
                    "quantized-shape",
                    f"{name} is {list(info.shape)}; {bits} bits in groups of {group_size} call for {list(shape)}",
                    f"{_REQUANTIZE}.",
                    name,
                    info.file,
                )


def _only_these(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    if _gptq(checkpoint) is None:
        return
    wanted = {linear.name for linear in layout.quantized}
    for name, info in checkpoint.loaded.items():
        module = name.removesuffix(".qweight")
        if module != name and module not in wanted and not module.startswith("mtp."):
            yield _finding(
                "quantized-extra",
                f"{module} is quantized; this family keeps it in BF16",
                f"{_REQUANTIZE}.",
                name,
                info.file,
            )


def _plain_present(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    if _gptq(checkpoint) is None:
        return
    for spec in (*layout.plain, *layout.vision):
        info = checkpoint.loaded.get(spec.name)
        module = spec.name.removesuffix(".weight")
        if info is None and f"{module}.qweight" not in checkpoint.loaded:
            yield _finding("plain-missing", f"{spec.name} is missing", f"{_REQUANTIZE}.", spec.name)
        elif info is not None and info.shape != spec.shape:
            yield _finding(
                "plain-shape",
                f"{spec.name} is {list(info.shape)}; config.json calls for {list(spec.shape)}",
                "config.json and weights belong to different models.",
                spec.name,
                info.file,
            )


def _act_order(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    """One pass over all ``g_idx`` (4 bytes an input feature: 9 MiB at 27B)."""
    config = _gptq(checkpoint)
    if config is None:
        return
    group_size = int(config.get("group_size", 128))
    infos: dict[str, TensorInfo] = {
        linear.name: info
        for linear in layout.quantized
        if (info := checkpoint.loaded.get(f"{linear.name}.g_idx")) is not None and info.dtype == "I32"
    }
    values = {name: read_g_idx(checkpoint, info) for name, info in infos.items()}
    for fused in layout.fused:
        present = [shard for shard in fused.shards if shard in values]
        unequal = [s for s in present[1:] if values[s].tobytes() != values[present[0]].tobytes()]
        if unequal:
            yield _finding(
                "g-idx-fused",
                f"{present[0]} and {', '.join(unequal)} differ in g_idx, but vLLM loads them as one {fused.name}",
                f"{_REQUANTIZE}.",
                f"{unequal[0]}.g_idx",
                infos[unequal[0]].file,
            )
    if config.get("desc_act"):
        return
    for name, g_idx in values.items():
        if not is_trivial(g_idx, group_size):
            yield _finding(
                "g-idx-flag",
                f"{name}.g_idx is permuted although the config says desc_act: false; every vLLM ignores it "
                "and computes garbage",
                f"{_REQUANTIZE}. Do not change the flag by hand.",
                f"{name}.g_idx",
                infos[name].file,
            )


QUANTIZED_RULES = (
    Rule(
        "quantized-tensors", "quantized", "Each quantized module needs its four tensors, in shape.", _tensors
    ),
    Rule("quantized-only", "quantized", "What the family keeps in BF16 must not be quantized.", _only_these),
    Rule("plain-tensors", "quantized", "Everything left in BF16 must be there.", _plain_present),
    Rule("act-order", "quantized", "g_idx must agree within fused modules and with desc_act.", _act_order),
)
