"""Qwen3.5, 3.6 and 3.8 dense hybrids: Gated-DeltaNet, full attention, optional vision tower, MTP head.

Tensor names and shapes are those of the published checkpoints: 851 text, 333 vision and 15 MTP tensors at 27B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptq_hybrid.checkpoint.layout import Family, FusedModule, LinearSpec, TensorLayout, TensorSpec
from gptq_hybrid.common.errors import CheckpointError

# The largest models published have about 130 layers. A hostile config must not make the layout take all memory.
_MOST_LAYERS = 1024
# Nor may it make a rule build lists of as many numbers as a config claims. The largest published models have a
# vocabulary of 262,144 and an MLP of 53,248.
_LARGEST = 1 << 20
LINEAR, FULL = "linear_attention", "full_attention"
# transformers' Qwen3_5TextConfig and Qwen3_5VisionConfig, from which vLLM takes what config.json leaves out.
_TEXT_DEFAULTS = {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "full_attention_interval": 4,
}
_VISION_DEFAULTS = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
}


@dataclass(frozen=True, slots=True)
class _Dims:
    hidden: int
    intermediate: int
    layer_types: tuple[str, ...]
    vocab: int
    tied: bool
    q_out: int
    kv_out: int
    attention_out: int
    head_dim: int
    gdn_qkv: int
    gdn_value: int
    gdn_value_heads: int
    gdn_value_head_dim: int
    conv_kernel: int
    mtp_layers: int


def qwen3_5_layout(config: Mapping[str, Any]) -> TensorLayout:
    """Derive the layout of a dense hybrid, multimodal (``qwen3_5``) or text-only (``qwen3_5_text``).

    Raises:
        CheckpointError: ``config`` has a dimension that is not a positive integer.
    """
    nested = config.get("text_config")
    text = nested if isinstance(nested, Mapping) else config
    dims = _dims({**_TEXT_DEFAULTS, **text}, root=config)
    root = "model.language_model" if isinstance(nested, Mapping) else "model"
    quantized: list[LinearSpec] = []
    plain = [
        TensorSpec(f"{root}.embed_tokens.weight", (dims.vocab, dims.hidden)),
        TensorSpec(f"{root}.norm.weight", (dims.hidden,)),
    ]
    if not dims.tied:
        plain.append(TensorSpec("lm_head.weight", (dims.vocab, dims.hidden)))
    fused: list[FusedModule] = []
    for number, kind in enumerate(dims.layer_types):
        prefix = f"{root}.layers.{number}"
        mixer = _attention if kind == FULL else _gated_deltanet
        for linears, tensors, groups in (mixer(prefix, dims), _mlp(prefix, dims)):
            quantized += linears
            plain += tensors
            fused += groups
    vision = config.get("vision_config")
    return TensorLayout(
        family="qwen3_5",
        layers_prefix=f"{root}.layers",
        quantized=tuple(quantized),
        plain=tuple(plain),
        vision=tuple(_vision(vision)) if isinstance(vision, Mapping) else (),
        mtp=tuple(_mtp(dims)),
        fused=tuple(fused),
    )


_Part = tuple[list[LinearSpec], list[TensorSpec], list[FusedModule]]


def _attention(prefix: str, d: _Dims) -> _Part:
    base = f"{prefix}.self_attn"
    linears = [
        LinearSpec(f"{base}.q_proj", d.q_out, d.hidden),
        LinearSpec(f"{base}.k_proj", d.kv_out, d.hidden),
        LinearSpec(f"{base}.v_proj", d.kv_out, d.hidden),
        LinearSpec(f"{base}.o_proj", d.hidden, d.attention_out),
    ]
    norms = [TensorSpec(f"{base}.{name}.weight", (d.head_dim,)) for name in ("q_norm", "k_norm")]
    shards = tuple(f"{base}.{name}" for name in ("q_proj", "k_proj", "v_proj"))
    return linears, norms, [FusedModule(f"{base}.qkv_proj", shards)]


def _gated_deltanet(prefix: str, d: _Dims) -> _Part:
    base = f"{prefix}.linear_attn"
    linears = [
        LinearSpec(f"{base}.in_proj_qkv", d.gdn_qkv, d.hidden),
        LinearSpec(f"{base}.in_proj_z", d.gdn_value, d.hidden),
        LinearSpec(f"{base}.out_proj", d.hidden, d.gdn_value),
    ]
    tensors = [
        TensorSpec(f"{base}.in_proj_b.weight", (d.gdn_value_heads, d.hidden)),
        TensorSpec(f"{base}.in_proj_a.weight", (d.gdn_value_heads, d.hidden)),
        TensorSpec(f"{base}.conv1d.weight", (d.gdn_qkv, 1, d.conv_kernel)),
        TensorSpec(f"{base}.A_log", (d.gdn_value_heads,)),
        TensorSpec(f"{base}.dt_bias", (d.gdn_value_heads,)),
        TensorSpec(f"{base}.norm.weight", (d.gdn_value_head_dim,)),
    ]
    shards = (f"{base}.in_proj_qkv", f"{base}.in_proj_z")
    return linears, tensors, [FusedModule(f"{base}.in_proj_qkvz", shards)]


def _mlp(prefix: str, d: _Dims) -> _Part:
    base = f"{prefix}.mlp"
    linears = [
        LinearSpec(f"{base}.gate_proj", d.intermediate, d.hidden),
        LinearSpec(f"{base}.up_proj", d.intermediate, d.hidden),
        LinearSpec(f"{base}.down_proj", d.hidden, d.intermediate),
    ]
    norms = [
        TensorSpec(f"{prefix}.{name}.weight", (d.hidden,))
        for name in ("input_layernorm", "post_attention_layernorm")
    ]
    shards = (f"{base}.gate_proj", f"{base}.up_proj")
    return linears, norms, [FusedModule(f"{base}.gate_up_proj", shards)]


def _mtp(d: _Dims) -> list[TensorSpec]:
    if not d.mtp_layers:
        return []
    tensors = [
        TensorSpec("mtp.fc.weight", (d.hidden, 2 * d.hidden)),
        TensorSpec("mtp.norm.weight", (d.hidden,)),
        TensorSpec("mtp.pre_fc_norm_embedding.weight", (d.hidden,)),
        TensorSpec("mtp.pre_fc_norm_hidden.weight", (d.hidden,)),
    ]
    for number in range(d.mtp_layers):
        for linears, norms, _ in (_attention(f"mtp.layers.{number}", d), _mlp(f"mtp.layers.{number}", d)):
            tensors += [linear.weight for linear in linears] + norms
    return tensors


def _vision(vision: Mapping[str, Any]) -> list[TensorSpec]:
    vision = {**_VISION_DEFAULTS, **vision}

    def dim(key: str) -> int:
        return _positive(vision, key, "vision_config.")

    hidden, inter, out = dim("hidden_size"), dim("intermediate_size"), dim("out_hidden_size")
    patch, temporal, merge = dim("patch_size"), dim("temporal_patch_size"), dim("spatial_merge_size")
    channels = dim("in_channels")
    merged = hidden * merge**2
    base = "model.visual"
    tensors = [
        TensorSpec(f"{base}.patch_embed.proj.weight", (hidden, channels, temporal, patch, patch)),
        TensorSpec(f"{base}.patch_embed.proj.bias", (hidden,)),
        TensorSpec(f"{base}.pos_embed.weight", (dim("num_position_embeddings"), hidden)),
    ]

    def affine(name: str, rows: int, columns: int | None = None) -> list[TensorSpec]:
        weight = (rows,) if columns is None else (rows, columns)
        return [TensorSpec(f"{name}.weight", weight), TensorSpec(f"{name}.bias", (rows,))]

    for number in range(_layer_count(vision, "depth", "vision_config.")):
        block = f"{base}.blocks.{number}"
        tensors += affine(f"{block}.norm1", hidden) + affine(f"{block}.norm2", hidden)
        tensors += affine(f"{block}.attn.qkv", 3 * hidden, hidden) + affine(
            f"{block}.attn.proj", hidden, hidden
        )
        tensors += affine(f"{block}.mlp.linear_fc1", inter, hidden)
        tensors += affine(f"{block}.mlp.linear_fc2", hidden, inter)
    tensors += affine(f"{base}.merger.norm", hidden)
    tensors += affine(f"{base}.merger.linear_fc1", merged, merged) + affine(
        f"{base}.merger.linear_fc2", out, merged
    )
    return tensors


def _positive(config: Mapping[str, Any], key: str, where: str = "") -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(
            "config.json", f"`{where}{key}` must be a positive integer, not {_shown(value)}"
        )
    return _within(value, f"{where}{key}")


def _within(value: int, name: str) -> int:
    if value > _LARGEST:
        raise CheckpointError(
            "config.json", f"`{name}` is {_shown(value)}; no known model has more than {_LARGEST}"
        )
    return value


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of many digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _layer_count(config: Mapping[str, Any], key: str, where: str = "") -> int:
    value = _positive(config, key, where)
    if value > _MOST_LAYERS:
        raise CheckpointError(
            "config.json", f"`{where}{key}` is {value}; no known model has more than {_MOST_LAYERS}"
        )
    return value


def _dims(text: Mapping[str, Any], *, root: Mapping[str, Any]) -> _Dims:
    """Read the dimensions from the language model's config; ``root`` is the whole ``config.json``."""

    def dim(key: str) -> int:
        return _positive(text, key)

    count = _layer_count(text, "num_hidden_layers")
    layer_types = text.get("layer_types")
    if layer_types is None:
        interval = dim("full_attention_interval")
        layer_types = [FULL if (i + 1) % interval == 0 else LINEAR for i in range(count)]
    well_formed = isinstance(layer_types, list) and all(kind in (LINEAR, FULL) for kind in layer_types)
    if not well_formed or len(layer_types) != count:
        raise CheckpointError("config.json", f"`layer_types` must hold {count} of {LINEAR!r} or {FULL!r}")
    heads, head_dim = dim("num_attention_heads"), dim("head_dim")
    keys = dim("linear_num_key_heads") * dim("linear_key_head_dim")
    values = dim("linear_num_value_heads") * dim("linear_value_head_dim")
    # transformers' Qwen3_5TextConfig gates attention output by default.
    gate = 2 if text.get("attn_output_gate", True) else 1
    return _Dims(
        hidden=dim("hidden_size"),
        intermediate=dim("intermediate_size"),
        layer_types=tuple(layer_types),
        vocab=dim("vocab_size"),
        tied=bool(text.get("tie_word_embeddings", False)),
        q_out=_within(heads * head_dim * gate, "num_attention_heads * head_dim"),
        kv_out=_within(dim("num_key_value_heads") * head_dim, "num_key_value_heads * head_dim"),
        attention_out=heads * head_dim,
        head_dim=head_dim,
        gdn_qkv=_within(2 * keys + values, "linear_num_key_heads * linear_key_head_dim"),
        gdn_value=values,
        gdn_value_heads=dim("linear_num_value_heads"),
        gdn_value_head_dim=dim("linear_value_head_dim"),
        conv_kernel=dim("linear_conv_kernel_dim"),
        mtp_layers=_mtp_layers(text, root),
    )


def _mtp_layers(text: Mapping[str, Any], root: Mapping[str, Any]) -> int:
    """Layers of the MTP head that vLLM builds: the text config's number, or one where that says nothing.

    vLLM reads the number at the root too, for the most tokens to draft, and fails on a 0 there.
    """
    if root.get("mtp_num_hidden_layers", 1) == 0 or not text.get("mtp_num_hidden_layers", 1):
        return 0
    if text.get("mtp_num_hidden_layers", 1) is True:
        return 1  # as range() has it
    return _layer_count({"mtp_num_hidden_layers": 1, **text}, "mtp_num_hidden_layers")


QWEN3_5 = Family(
    name="qwen3_5",
    architectures=("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"),
    model_types=("qwen3_5", "qwen3_5_text"),
    mtp_architectures=("Qwen3_5MTP",),
    layout=qwen3_5_layout,
)
