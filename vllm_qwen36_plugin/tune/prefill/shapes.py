"""Which linears a checkpoint has, as vLLM loads them: fused ones as one. From its config alone."""

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
# The text model that Qwen3.5-27B, Qwen3.6-27B and Qwen3.8-27B share.
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
    """``count`` linears of a model that are alike: W ``[k, n]``, its bits and rows to a scale (-1: all).

    ``names``: what they are called within a layer, such as ``gate_up_proj``.
    """

    k: int
    n: int
    bits: int
    group_size: int
    names: tuple[str, ...]
    count: int

    @property
    def name(self) -> str:
        """All names in one."""
        return ", ".join(self.names)


def linears_at(where: str | None) -> list[Linears]:
    """Those of a checkpoint (folder, hub id or URL; only its ``config.json`` is read); None for the 27B's.

    Raises:
        HybridError: there is none, it is of another family, or its linears are not what is measured.
    """
    return linears_of(CONFIG_27B) if where is None else _of_checkpoint(Checkpoint.read(open_files(where)))


def _of_checkpoint(checkpoint: Checkpoint) -> list[Linears]:
    return linears_of(checkpoint.config, checkpoint.quantization_config, checkpoint.location)


def linears_of(
    config: Mapping[str, Any], quantization: Mapping[str, Any] | None = None, where: str = "config.json"
) -> list[Linears]:
    """Kinds of quantized linears, in the order of the first layer that has them.

    Args:
        config: a parsed ``config.json``.
        quantization: its ``quantization_config``; None for an original, which is taken as it would be quantized
            by default (4 bits, groups of 128).
        where: what to call it in errors.

    Raises:
        HybridError: another family or format; parts of a fused linear that are not alike; or nothing quantized.
    """
    layout = layout_for(config)
    found: dict[tuple[int, int, int, int], tuple[dict[str, None], int]] = {}
    for name, parts in _loaded(layout).items():
        stored = {_stored(quantization, part, where) for part in parts}
        if len(stored) > 1:
            raise HybridError(
                f"{where}: the parts of {name} differ in bits or groups, and vLLM loads them as one",
                remedy="Run: qwen36 check",
            )
        how = stored.pop()
        if how is None:
            continue
        key = (parts[0].in_features, sum(part.out_features for part in parts), *how)
        names, count = found.get(key, ({}, 0))
        found[key] = ({**names, name.rpartition(".")[2]: None}, count + 1)
    if not found:
        raise HybridError(f"{where}: none of its linears is quantized", remedy="There is nothing to tune.")
    return [Linears(*key, names=tuple(names), count=count) for key, (names, count) in found.items()]


def _loaded(layout: TensorLayout) -> dict[str, list[LinearSpec]]:
    """By what vLLM makes of them: the modules it loads into each."""
    owner = {shard: fused.name for fused in layout.fused for shard in fused.shards}
    found: dict[str, list[LinearSpec]] = {}
    for linear in layout.quantized:
        found.setdefault(owner.get(linear.name, linear.name), []).append(linear)
    return found


def _stored(quantization: Mapping[str, Any] | None, linear: LinearSpec, where: str) -> tuple[int, int] | None:
    """Bits and group size of one module; None where it is left alone.

    Raises:
        HybridError: not symmetric integers of 4 or 8 bits.
    """
    known = declared_format(quantization)
    if quantization is None or known is UNQUANTIZED:
        return BITS, GROUP_SIZE
    if known not in (GPTQ, AUTO_ROUND, COMPRESSED_TENSORS) or quantization.get("sym", True) is False:
        method = "asymmetric integers" if known in (GPTQ, AUTO_ROUND) else quantization.get("quant_method")
        raise HybridError(
            f"{where} is quantized as {method!s}; only symmetric integers take another path for many rows",
            remedy="Serve it as it is: the plugin leaves its linears to vLLM.",
        )
    if known.declares(quantization, linear.name) is False:
        return None
    found = settings(quantization, linear.name) if known is GPTQ else _by_shapes(quantization, linear)
    if found is None or found[0] not in (4, 8):
        raise HybridError(
            f"{where}: {linear.name} is not packed in 4 or 8 bits",
            remedy="Serve it as it is: the plugin leaves such linears to vLLM.",
        )
    return found


def _by_shapes(quantization: Mapping[str, Any], linear: LinearSpec) -> tuple[int, int] | None:
    """Bits and group size from the shapes of the tensors that the config calls for."""
    known = declared_format(quantization)
    expected = (known.expected(quantization, linear) if known else None) or {}
    words = expected.get("weight_packed") or expected.get("qweight")
    scales = expected.get("weight_scale") or expected.get("scales")
    # AWQ's qweight is packed along the output.
    if words is None or scales is None or linear.out_features not in words[1]:
        return None
    groups = prod(scales[1]) // linear.out_features
    bits = 32 * prod(words[1]) // prod(linear.weight.shape)
    return bits, -1 if groups == 1 else linear.in_features // groups
