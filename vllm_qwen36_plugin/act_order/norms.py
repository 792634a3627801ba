"""Find the norms that can write in order: those that feed linears of one order, and nothing else.

A norm of a decoder layer has one block behind it. If that block is as expected, and all that read the norm have one
order, the norm gets it and the linears permute nothing. `in_proj_ba` of Gated-DeltaNet, which is not packed, gets
its columns permuted: its products are the same, summed in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.upstream.decoder import decoder_classes, has_plain_weight, linears_in

from .method import ActOrderLinearMethod
from .norm import NormInOrder

# Widths that `norm_kernel` takes: one program has a whole token, with 2 or 4 bytes of shared memory a value.
_WIDEST, _STEP = 16384, 16


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a decoder layer: the norm before it, the linears in it that read the norm, and its other ones."""

    norm: str
    name: str
    readers: frozenset[str]
    others: frozenset[str]


_BLOCKS = (
    Block("input_layernorm", "self_attn", frozenset({"qkv_proj"}), frozenset({"o_proj"})),
    Block(
        "input_layernorm",
        "linear_attn",
        frozenset({"in_proj_qkvz", "in_proj_ba"}),
        frozenset({"conv1d", "out_proj"}),
    ),
    Block("post_attention_layernorm", "mlp", frozenset({"gate_up_proj"}), frozenset({"down_proj"})),
)


def fold_norms(model: torch.nn.Module, device: torch.device) -> int:
    """Have norms of a loaded model, whose linears are not finished yet, write in order; return how many do.

    Args:
        model: vLLM's, with `ActOrderLinearMethod` where it is packed.
        device: where it will run.

    Raises:
        ActOrderError: a linear has no ``g_idx``, or one that is no act order.
        CompatError: vLLM's decoder layer is not what it was.
    """
    layer_class, norm_class = decoder_classes()
    layers = [module for module in model.modules() if type(module) is layer_class]
    folded = 0
    for layer in layers:
        for block in _BLOCKS:
            folded += _fold(layer, block, norm_class, device)
    logger.debug("act order: %d norms of %d layers write in order", folded, len(layers))
    return folded


def _fold(layer: torch.nn.Module, block: Block, norm_class: Any, device: torch.device) -> bool:
    norm: Any = getattr(layer, block.norm, None)
    behind = getattr(layer, block.name, None)
    if type(norm) is not norm_class or behind is None:
        return False
    linears = linears_in(behind)
    # A linear with another name may read the norm too: in a block of experts, or a vLLM that splits one.
    if set(linears) - block.others != block.readers:
        return False
    readers = [linears[name] for name in sorted(block.readers)]
    order = _common_order(readers)
    if order is None or order.shape != norm.weight.shape or len(order) > _WIDEST or len(order) % _STEP:
        return False
    for reader in readers:
        method = reader.quant_method
        if isinstance(method, ActOrderLinearMethod):
            method.folded = True
        else:
            weight = reader.weight.data
            weight.copy_(weight.index_select(1, order.to(weight.device)))
    setattr(layer, block.norm, NormInOrder(norm.weight, norm.variance_epsilon, order.to(device)))
    return True


def _common_order(readers: list[Any]) -> torch.Tensor | None:
    """Return the order that all readers share, int32 ``[k]``; None without one, or if a reader cannot follow."""
    orders: list[torch.Tensor | None] = []
    plain: list[torch.Tensor] = []
    for reader in readers:
        method = reader.quant_method
        if isinstance(method, ActOrderLinearMethod):
            if not method.pending(reader) or method.folded:
                return None
            orders.append(method.order_for(reader))
        elif has_plain_weight(reader):
            plain.append(reader.weight)
        else:
            return None
    if not orders or orders[0] is None:
        return None
    first = orders[0]
    if any(order is None or not torch.equal(order, first) for order in orders):
        return None
    return first if all(weight.shape[1] == len(first) for weight in plain) else None
