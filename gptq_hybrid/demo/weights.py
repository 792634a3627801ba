"""The tensors of a demo checkpoint.

They make the model a fixed map t -> f(t). The embedding of t is the sum of a direction that stands for f(t) and of
a direction of its own; row f(t) of ``lm_head`` reads the first. The layers are random matrices of ordinary size.
Their outputs add a fraction of the residual's norm in random directions: enough to matter to a quantizer's error
figures, too little to outvote the direction. ``mtp.fc`` passes on the token's normalized embedding, so the MTP
head predicts f of the token it is fed, whatever hidden state comes with it.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Json = dict[str, Any]
Tensors = dict[str, "torch.Tensor"]

_DIRECTION_SHARE = 0.6  # of an embedding's norm, for f(t); the rest keeps embeddings distinct
_LOGIT_SCALE = 50.0  # logit of a perfectly aligned hidden state
_BACKGROUND = 0.2  # size of the lm_head rows that nothing maps to, relative to the others
_BRANCH_GAIN = 0.3  # of the matrices that write to the residual, in a model of four layers
_FC_NOISE = 0.15


class _Draw:
    """Draws random tensors that depend on the seed and their own name, not on the order of drawing."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def normal(self, name: str, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        import torch

        generator = torch.Generator().manual_seed((self._seed << 32) | zlib.crc32(name.encode()))
        return torch.randn(*shape, generator=generator) * std + mean

    def linear(self, name: str, out_features: int, in_features: int, gain: float = 1.0) -> torch.Tensor:
        return self.normal(name, out_features, in_features, std=gain / math.sqrt(in_features))

    def block_norm(self, name: str, size: int) -> torch.Tensor:
        """Draw a zero-centred RMSNorm weight ``[size]`` with outlier channels, as trained models have.

        Without outliers act order would make no difference.
        """
        weight = self.normal(name, size, std=0.2)
        weight[self.normal(name + ".outliers", size).topk(max(1, size // 64)).indices] = 2.0
        return weight


def language_tensors(
    config: Json, next_token: tuple[int, ...], loop: tuple[int, ...], seed: int, prefix: str
) -> Tensors:
    """Make embeddings, decoder layers, final norm and ``lm_head``: BF16, names starting with ``prefix``."""
    draw = _Draw(seed)
    embed, lm_head = _map_tensors(draw, config["vocab_size"], config["hidden_size"], next_token, loop)
    tensors: Tensors = {f"{prefix}embed_tokens.weight": embed}
    for number in range(len(config["layer_types"])):
        tensors |= layer_tensors(config, number, seed, prefix)
    tensors[f"{prefix}norm.weight"] = draw.normal(f"{prefix}norm", config["hidden_size"], std=0.05)
    tensors["lm_head.weight"] = lm_head
    return _bf16(tensors)


def layer_tensors(config: Json, number: int, seed: int, prefix: str) -> Tensors:
    """Make decoder layer ``number``: BF16, names starting with ``prefix``."""
    draw, name = _Draw(seed), f"{prefix}layers.{number}."
    linear = config["layer_types"][number] == "linear_attention"
    mixer = _linear_attention if linear else _self_attention
    gain = _BRANCH_GAIN * math.sqrt(4 / config["num_hidden_layers"])
    return _bf16(mixer(draw, name, config, gain) | _mlp_and_norms(draw, name, config, gain))


def mtp_tensors(config: Json, seed: int) -> Tensors:
    """Make the 15 tensors of the MTP head, BF16."""
    import torch

    draw = _Draw(seed)
    hidden = config["hidden_size"]
    # The columns are [embedding, hidden state]: vLLM concatenates in that order.
    fc = draw.linear("mtp.fc", hidden, 2 * hidden, gain=_FC_NOISE)
    fc[:, :hidden] += torch.eye(hidden)
    tensors: Tensors = {"mtp.fc.weight": fc}
    for name in ("mtp.norm", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden"):
        tensors[f"{name}.weight"] = draw.normal(name, hidden, std=0.05)
    tensors |= _self_attention(draw, "mtp.layers.0.", config, _BRANCH_GAIN)
    tensors |= _mlp_and_norms(draw, "mtp.layers.0.", config, _BRANCH_GAIN)
    return _bf16(tensors)


def vision_tensors(config: Json, seed: int) -> Tensors:
    """Make the vision tower under ``model.visual.``, BF16."""
    import torch

    draw = _Draw(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    merged = hidden * config["spatial_merge_size"] ** 2
    patch = (config["in_channels"], config["temporal_patch_size"], config["patch_size"], config["patch_size"])
    tensors: Tensors = {}

    def linear(name: str, out_features: int, in_features: int) -> None:
        tensors[f"model.visual.{name}.weight"] = draw.linear(name, out_features, in_features)
        tensors[f"model.visual.{name}.bias"] = draw.normal(name + ".bias", out_features, std=0.02)

    def norm(name: str) -> None:
        tensors[f"model.visual.{name}.weight"] = torch.ones(hidden)
        tensors[f"model.visual.{name}.bias"] = torch.zeros(hidden)

    linear("patch_embed.proj", hidden, math.prod(patch))
    patches = "model.visual.patch_embed.proj.weight"
    tensors[patches] = tensors[patches].view(hidden, *patch)
    tensors["model.visual.pos_embed.weight"] = draw.normal(
        "pos_embed", config["num_position_embeddings"], hidden, std=0.02
    )
    for i in range(config["depth"]):
        norm(f"blocks.{i}.norm1")
        norm(f"blocks.{i}.norm2")
        linear(f"blocks.{i}.attn.qkv", 3 * hidden, hidden)
        linear(f"blocks.{i}.attn.proj", hidden, hidden)
        linear(f"blocks.{i}.mlp.linear_fc1", inner, hidden)
        linear(f"blocks.{i}.mlp.linear_fc2", hidden, inner)
    norm("merger.norm")
    linear("merger.linear_fc1", merged, merged)
    linear("merger.linear_fc2", config["out_hidden_size"], merged)
    return _bf16(tensors)


def _map_tensors(
    draw: _Draw, vocab: int, hidden: int, next_token: tuple[int, ...], loop: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make ``embed_tokens`` and ``lm_head``, float32 ``[vocab, hidden]``, so that f(t) is the argmax after t."""
    import torch

    # One direction for each loop token and one for all tokens outside the loop; orthonormal.
    directions = torch.linalg.qr(draw.normal("directions", hidden, len(loop) + 1)).Q.T
    slot = torch.full((vocab,), len(loop))
    slot[torch.tensor(loop)] = torch.arange(len(loop))
    own = draw.normal("own", vocab, hidden)
    own -= own @ directions.T @ directions
    own /= own.norm(dim=1, keepdim=True)
    embed = _DIRECTION_SHARE * directions[slot] + math.sqrt(1 - _DIRECTION_SHARE**2) * own
    lm_head = draw.normal("lm_head", vocab, hidden, std=_BACKGROUND / math.sqrt(hidden))
    lm_head[torch.tensor(loop)] = 0.0
    for i, token in enumerate(loop):
        lm_head[next_token[token]] += directions[i]
    lm_head[loop[0]] += directions[len(loop)]
    return embed * math.sqrt(hidden), lm_head * (_LOGIT_SCALE / math.sqrt(hidden))


def _linear_attention(draw: _Draw, prefix: str, config: Json, gain: float) -> Tensors:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    value_dim = heads * config["linear_value_head_dim"]
    conv_dim = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"] + value_dim
    kernel = config["linear_conv_kernel_dim"]
    p = f"{prefix}linear_attn."
    return {
        p + "in_proj_qkv.weight": draw.linear(p + "in_proj_qkv", conv_dim, hidden),
        p + "in_proj_z.weight": draw.linear(p + "in_proj_z", value_dim, hidden),
        p + "in_proj_b.weight": draw.linear(p + "in_proj_b", heads, hidden),
        p + "in_proj_a.weight": draw.linear(p + "in_proj_a", heads, hidden),
        p + "conv1d.weight": draw.normal(p + "conv1d", conv_dim, 1, kernel, std=0.5),
        # A decay of about 0.5 to 0.99 a step: the state remembers, and forgets.
        p + "A_log": draw.normal(p + "A_log", heads, std=0.7, mean=-1.0),
        p + "dt_bias": draw.normal(p + "dt_bias", heads, std=0.5, mean=-1.0),
        p + "norm.weight": draw.normal(p + "norm", config["linear_value_head_dim"], std=0.05, mean=1.0),
        p + "out_proj.weight": draw.linear(p + "out_proj", hidden, value_dim, gain=gain),
    }


def _self_attention(draw: _Draw, prefix: str, config: Json, gain: float) -> Tensors:
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    q_dim, kv_dim = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    p = f"{prefix}self_attn."
    return {
        p + "q_proj.weight": draw.linear(p + "q_proj", 2 * q_dim, hidden),  # queries and output gates
        p + "k_proj.weight": draw.linear(p + "k_proj", kv_dim, hidden),
        p + "v_proj.weight": draw.linear(p + "v_proj", kv_dim, hidden),
        p + "o_proj.weight": draw.linear(p + "o_proj", hidden, q_dim, gain=gain),
        p + "q_norm.weight": draw.normal(p + "q_norm", head_dim, std=0.05),
        p + "k_norm.weight": draw.normal(p + "k_norm", head_dim, std=0.05),
    }


def _mlp_and_norms(draw: _Draw, prefix: str, config: Json, gain: float) -> Tensors:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    p = f"{prefix}mlp."
    before, between = f"{prefix}input_layernorm", f"{prefix}post_attention_layernorm"
    return {
        before + ".weight": draw.block_norm(before, hidden),
        between + ".weight": draw.block_norm(between, hidden),
        p + "gate_proj.weight": draw.linear(p + "gate_proj", inner, hidden),
        p + "up_proj.weight": draw.linear(p + "up_proj", inner, hidden),
        p + "down_proj.weight": draw.linear(p + "down_proj", hidden, inner, gain=gain),
    }


def _bf16(tensors: Tensors) -> Tensors:
    import torch

    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
