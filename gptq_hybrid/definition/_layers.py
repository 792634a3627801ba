"""What gptqmodel has to be told about the hybrid's layers: the module tree, and the attention mask of a replay."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from gptq_hybrid.upstream import moved

if TYPE_CHECKING:
    import torch

# Which linears are quantized, in which order, and which share one Hessian. gptqmodel's notation: ``name:GROUP``
# (modules of one group are quantized together from one forward), ``:in=TAG`` (same tag in a group: same input,
# hence one Hessian and one ``g_idx``), ``:!`` (left as it is). in_proj_qkv and in_proj_z read the same hidden
# states and become one parameter in vLLM, so they form one group; upstream quantizes them one after the other.
_LINEAR_ATTN = (
    "norm:!", "conv1d:!", "in_proj_qkv:0:in=x", "in_proj_z:0:in=x", "in_proj_b:!:0", "in_proj_a:!:0", "out_proj:1",
)  # fmt: skip
_SELF_ATTN = ("q_norm:!", "q_proj:0:in=x", "k_norm:!", "k_proj:0:in=x", "v_proj:0:in=x", "o_proj:1")
_MLP = ("gate_proj:0:in=x", "up_proj:0:in=x", "down_proj:1")


def hybrid_tree(upstream: list[Any], *, tags: bool) -> list[Any]:
    """Return upstream's module tree with this project's groups.

    Args:
        upstream: gptqmodel's tree; not changed.
        tags: keep the ``:in=`` marks.

    Raises:
        IncompatibleError: upstream's tree lacks one of the hybrid's blocks.
    """
    tree: list[Any] = deepcopy(upstream)
    blocks = tree[-1] if tree and isinstance(tree[-1], dict) else {}
    if not {"self_attn", "linear_attn", "mlp"} <= blocks.keys():
        raise moved("the module tree of qwen3_5 is expected to hold self_attn, linear_attn and mlp")
    for block, entries in (("self_attn", _SELF_ATTN), ("linear_attn", _LINEAR_ATTN), ("mlp", _MLP)):
        blocks[block] = entries if tags else tuple(entry.replace(":in=x", "") for entry in entries)
    return tree


def causal_mask(hidden_states: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """Make an additive causal mask that also hides padding, for a full-attention layer.

    gptqmodel captures the arguments of layer 0, a Gated-DeltaNet layer with a 2-D padding mask or none, and replays
    them into every layer. With the 2-D mask full attention crashes on batches of unequal length; with none, eager
    attention looks at the future.

    Args:
        hidden_states: ``[batch, length, hidden]``; gives dtype and device.
        padding: ``[batch, length]``, non-zero where a token is real; None where all are.

    Returns:
        ``[batch, 1, length, length]``: 0 where a query may look, the dtype's minimum elsewhere.
    """
    import torch

    batch, length = hidden_states.shape[:2]
    visible = torch.ones(length, length, dtype=torch.bool, device=hidden_states.device).tril()
    visible = visible.expand(batch, 1, length, length)
    if padding is not None:
        visible = visible & padding.to(hidden_states.device).bool()[:, None, None, :]
    mask = torch.zeros(visible.shape, dtype=hidden_states.dtype, device=hidden_states.device)
    return mask.masked_fill_(~visible, torch.finfo(hidden_states.dtype).min)
