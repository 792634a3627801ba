"""The module tree: which linears are quantized, in which order, and which share one Hessian.

gptqmodel's notation: ``name:GROUP`` (modules of one group are quantized together
from one forward), ``:in=TAG`` (same tag in a group: same input, hence one Hessian
and one ``g_idx``), ``:!`` (left as it is).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from gptq_hybrid.upstream.gptqmodel import moved

# in_proj_qkv and in_proj_z read the same hidden states and become one parameter in
# vLLM, so they form one group; upstream quantizes them one after the other.
_LINEAR_ATTN = (
    "norm:!", "conv1d:!", "in_proj_qkv:0:in=x", "in_proj_z:0:in=x", "in_proj_b:!:0", "in_proj_a:!:0", "out_proj:1",
)  # fmt: skip
_SELF_ATTN = ("q_norm:!", "q_proj:0:in=x", "k_norm:!", "k_proj:0:in=x", "v_proj:0:in=x", "o_proj:1")
_MLP = ("gate_proj:0:in=x", "up_proj:0:in=x", "down_proj:1")


def hybrid_tree(upstream: list[Any], *, tags: bool) -> list[Any]:
    """Upstream's tree with this project's groups; ``tags`` keeps the ``:in=`` marks.

    Raises:
        IncompatibleError: upstream's tree has other blocks than the hybrid's four.
    """
    tree: list[Any] = deepcopy(upstream)
    blocks = tree[-1] if tree and isinstance(tree[-1], dict) else {}
    if not {"self_attn", "linear_attn", "mlp"} <= blocks.keys():
        raise moved("the module tree of qwen3_5 is expected to hold self_attn, linear_attn and mlp")
    for block, entries in (("self_attn", _SELF_ATTN), ("linear_attn", _LINEAR_ATTN), ("mlp", _MLP)):
        blocks[block] = entries if tags else tuple(entry.replace(":in=x", "") for entry in entries)
    return tree
