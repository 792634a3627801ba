"""List a checkpoint's linears from its config alone, as vLLM loads them: fused ones as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from gptq_hybrid.checkpoint import Checkpoint, LinearSpec, TensorLayout, layout_for
from gptq_hybrid.checkpoint.files import open_files
from gptq_hybrid.checkpoint.formats import AUTO_ROUND, COMPRESSED_TENSORS, GPTQ, UNQUANTIZED, declared_format
from gptq_hybrid.checkpoint.formats.gptq import settings
from gptq_hybrid.common.errors import HybridError

BITS, GROUP_SIZE = 4, 128
# The text config that Qwen3.5-27B, Qwen3.6-27B and Qwen3.8-27B share.
CONFIG_27B: Mapping[str, Any] = {
    "model_type": "qwen3_5_text",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "full_attention_interval": 4,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "vocab_size": 248320,
}


@dataclass(frozen=True, slots=True)
class Linears:
    """Linears of a model that have the same shape, W ``[k, n]``, and the same format.

    Attributes:
        bits: of a packed value.
        group_size: values along k that share a scale; -1 for all.
        names: within a layer, such as ``gate_up_proj``.
        count: how many the model has.
    """

    k: int
    n: int
    bits: int
    group_size: int
    names: tuple[str, ...]
    count: int

    @property
    def name(self) -> str:
        """All names in one string."""
        return ", ".join(self.names)


def read_linears(location: str | None) -> list[Linears]:
    """List the linears of a checkpoint: a folder, hub id or URL, of which only ``config.json`` is read.

    Args:
        location: of the checkpoint; None for the 27B's shapes.

    Raises:
        HybridError: there is no checkpoint, it is of another family, or its linears cannot be measured.
    """
    if location is None:
        return list_linears(CONFIG_27B)
    checkpoint = Checkpoint.read(open_files(location))
    return list_linears(checkpoint.config, checkpoint.quantization_config, checkpoint.location)


def list_linears(
    config: Mapping[str, Any], quantization: Mapping[str, Any] | None = None, where: str = "config.json"
) -> list[Linears]:
    """List the kinds of quantized linears, in the order of the first layer that has them.

    Args:
        config: a parsed ``config.json``.
        quantization: its ``quantization_config``; None for an original, which counts as quantized by default
            (4 bits, groups of 128).
        where: the checkpoint's name in errors.

    Raises:
        HybridError: another family or format; parts of a fused linear that are not alike; or nothing quantized.
    """
    layout = layout_for(config)
    kinds: dict[tuple[int, int, int, int], tuple[dict[str, None], int]] = {}
    for name, parts in _fused(layout).items():
        formats = {_format(quantization, part, where) for part in parts}
        if len(formats) > 1:
            raise HybridError(
                f"{where}: the parts of {name} differ in bits or groups, and vLLM loads them as one",
                remedy="Run: qwen36 check",
            )
        bits_and_group = formats.pop()
        if bits_and_group is None:
            continue
        key = (parts[0].in_features, sum(part.out_features for part in parts), *bits_and_group)
        names, count = kinds.get(key, ({}, 0))
        kinds[key] = ({**names, name.rpartition(".")[2]: None}, count + 1)
    if not kinds:
        raise HybridError(f"{where}: none of its linears is quantized", remedy="There is nothing to tune.")
    return [Linears(*key, names=tuple(names), count=count) for key, (names, count) in kinds.items()]


def _fused(layout: TensorLayout) -> dict[str, list[LinearSpec]]:
    """Group the checkpoint's linears by the linear that vLLM loads them into."""
    owner = {shard: fused.name for fused in layout.fused for shard in fused.shards}
    groups: dict[str, list[LinearSpec]] = {}
    for linear in layout.quantized:
        groups.setdefault(owner.get(linear.name, linear.name), []).append(linear)
    return groups


def _format(quantization: Mapping[str, Any] | None, linear: LinearSpec, where: str) -> tuple[int, int] | None:
    """Read the bits and group size of one linear; None if it is not quantized.

    Raises:
        HybridError: it is not in symmetric integers of 4 or 8 bits.
    """
    fmt = declared_format(quantization)
    if quantization is None or fmt is UNQUANTIZED:
        return BITS, GROUP_SIZE
    if fmt not in (GPTQ, AUTO_ROUND, COMPRESSED_TENSORS) or quantization.get("sym", True) is False:
        method = "asymmetric integers" if fmt in (GPTQ, AUTO_ROUND) else quantization.get("quant_method")
        raise HybridError(
            f"{where} is quantized as {method!s}; only symmetric integers can take a dense route",
            remedy="Serve it as it is: the plugin leaves its linears to vLLM.",
        )
    if fmt.declares(quantization, linear.name) is False:
        return None
    result = settings(quantization, linear.name) if fmt is GPTQ else _format_by_shapes(quantization, linear)
    if result is None or result[0] not in (4, 8):
        raise HybridError(
            f"{where}: {linear.name} is not packed in 4 or 8 bits",
            remedy="Serve it as it is: the plugin leaves such linears to vLLM.",
        )
    return result


def _format_by_shapes(quantization: Mapping[str, Any], linear: LinearSpec) -> tuple[int, int] | None:
    """Work out bits and group size from the shapes of the tensors that the config calls for."""
    fmt = declared_format(quantization)
    expected = (fmt.expected(quantization, linear) if fmt else None) or {}
    words = expected.get("weight_packed") or expected.get("qweight")
    scales = expected.get("weight_scale") or expected.get("scales")
    # AWQ's qweight is packed along the output.
    if words is None or scales is None or linear.out_features not in words[1]:
        return None
    groups = prod(scales[1]) // linear.out_features
    bits = 32 * prod(words[1]) // prod(linear.weight.shape)
    return bits, -1 if groups == 1 else linear.in_features // groups
