"""Small checkpoints of every kind: config, format, what is packed and where it lies are chosen one by one.

Values are random; only names, shapes, types and files matter to a loader.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from gptq_hybrid.checkpoint import layout_for

HIDDEN, INTERMEDIATE, VOCAB, GROUP, LAYERS = 128, 256, 512, 32, 4
INDEX = "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]
Format = Literal["bf16", "gptq", "awq", "auto-round", "packed", "fp8"]
# Modules that a choice is made about together.
GROUPS = ("mtp", "fc", "lm_head", "small", "vision")
FUSED = {
    "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
    "in_proj_a": "in_proj_ba", "in_proj_b": "in_proj_ba",
}  # fmt: skip

TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 16,
    "linear_value_head_dim": 64,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 4096,
    "model_type": "qwen3_5_text",
    "mtp_num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10_000_000, "rope_type": "default"},
    "vocab_size": VOCAB,
}
VISION: dict[str, Any] = {
    "deepstack_visual_indexes": [],
    "depth": 1,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 128,
    "in_channels": 3,
    "intermediate_size": 128,
    "model_type": "qwen3_5",
    "num_heads": 2,
    "num_position_embeddings": 64,
    "out_hidden_size": HIDDEN,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


@dataclass(frozen=True)
class Made:
    """A checkpoint to build.

    Attributes:
        nested: tensors and config of the multimodal class, else of the text-only one.
        architecture: class that the config names; by default the one that fits.
        format: how the body's linears are stored, and which ``quantization_config`` says so.
        packed: which groups beside the body are stored packed.
        declared: which of them the config has quantized; by default those that are.
        style: how exclusions are spelled: ``shard`` and ``fused`` by module, ``regex`` by kind.
        zero: ``stored`` and ``declared`` zero points, where the format has the choice.
        count: where the number of MTP layers stands, and what it is.
        tied: ``tie_word_embeddings`` at the root and in the text config.
        own_head: whether there is an ``lm_head``.
        absent: keys of the text config that are left out.
        head: where the MTP head lies.
        text, root, quantization: further changes to the configs; None removes a key.
    """

    nested: bool = True
    architecture: str | None = None
    format: Format = "bf16"
    packed: frozenset[str] = frozenset()
    declared: frozenset[str] | None = None
    style: Literal["shard", "fused", "regex"] = "shard"
    zero: tuple[bool, bool] = (False, False)
    count: Literal["text-1", "text-0", "root-1", "absent", "nextn-1"] = "text-1"
    tied: tuple[bool | None, bool | None] = (False, False)
    own_head: bool = True
    absent: frozenset[str] = frozenset()
    head: Literal[
        "inline", "separate", "unindexed", "absent", "model.mtp", "language_model.mtp", "subfolder"
    ] = "separate"
    text: Mapping[str, Any] = field(default_factory=dict)
    root: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(repr(self))


def _int32(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int64).to(torch.int32)


def _scales(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.rand(*shape) * 0.01 + 0.001).to(dtype)


def _parts(made: Made, n: int, k: int) -> Tensors:
    """The tensors of a packed linear."""
    groups = k // GROUP
    if made.format == "packed":
        parts = {
            "weight_packed": _int32(n, k // 8),
            "weight_scale": _scales(n, groups),
            "weight_shape": torch.tensor([n, k]),
        }
        if made.zero[0]:
            parts["weight_zero_point"] = _int32(-(-n // 8), groups)
        return parts
    if made.format == "fp8":
        weight = torch.randn(n, k).clamp(-3, 3).to(torch.float8_e4m3fn)
        return {"weight": weight, "weight_scale_inv": _scales(-(-n // 128), -(-k // 128))}
    scales = _scales(groups, n, dtype=torch.float16)
    if made.format == "awq":
        return {"qweight": _int32(k, n // 8), "scales": scales, "qzeros": _int32(groups, n // 8)}
    zeros = torch.full((groups, n // 8), 0x77777777, dtype=torch.int32)
    parts = {"qweight": _int32(k // 8, n), "scales": scales, "qzeros": zeros}
    if made.format == "gptq":
        parts["g_idx"] = (torch.arange(k) // GROUP).to(torch.int32)
    return parts


def group_of(name: str) -> str | None:
    """Which of :data:`GROUPS` a linear belongs to; None for the body's."""
    if name == "mtp.fc":
        return "fc"
    if name.startswith("mtp."):
        return "mtp"
    if name.startswith("lm_head"):
        return "lm_head"
    if ".visual." in name:
        return "vision"
    return "small" if name.endswith(("in_proj_a", "in_proj_b")) else None


def _good_config(made: Made) -> dict[str, Any]:
    if not made.nested:
        return {"architectures": ["Qwen3_5ForCausalLM"], **copy.deepcopy(TEXT)}
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": VOCAB - 1,
        "model_type": "qwen3_5",
        "text_config": copy.deepcopy(TEXT),
        "video_token_id": VOCAB - 2,
        "vision_config": copy.deepcopy(VISION),
        "vision_end_token_id": VOCAB - 3,
        "vision_start_token_id": VOCAB - 4,
    }


def _merge(owner: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        owner.pop(key, None) if value is None else owner.update({key: value})


def _config(made: Made) -> dict[str, Any]:
    config = _good_config(made)
    text = config.get("text_config", config)
    where, _, number = made.count.partition("-")
    del text["mtp_num_hidden_layers"]
    if number:
        owner, key = {"root": config, "nextn": text, "text": text}[where], "mtp_num_hidden_layers"
        owner["num_nextn_predict_layers" if where == "nextn" else key] = int(number)
    for owner, value in zip((config, text), made.tied, strict=True):
        if value is not None:
            owner["tie_word_embeddings"] = value
    for key in made.absent:
        text.pop(key, None)
    if made.architecture:
        config["architectures"] = [made.architecture]
    _merge(text, made.text)
    _merge(config, made.root)
    return config


def _tensors(made: Made, modules: list[str]) -> Tensors:
    """Every tensor by its usual name; the linears' names are added to ``modules``."""
    config = _good_config(made) | {"tie_word_embeddings": False}
    if made.nested:
        config["text_config"]["tie_word_embeddings"] = False
    layout = layout_for(config)
    tensors: Tensors = {}
    body = {linear.name for linear in layout.quantized}
    for spec in layout.dense:
        name = spec.name.removesuffix(".weight")
        group = group_of(name)
        linear = len(spec.shape) == 2 and (name in body or group) and not name.endswith("pos_embed")
        if name == "lm_head" and not made.own_head:
            continue
        if linear:
            modules.append(name)
        packed = made.format != "bf16" and linear and (name in body or group in made.packed)
        if packed and made.format != "fp8" and spec.shape[0] % 8:
            packed = False
        if packed:
            tensors |= {f"{name}.{part}": t for part, t in _parts(made, *spec.shape).items()}
        else:
            dtype = torch.float32 if name.endswith("A_log") else torch.bfloat16
            tensors[spec.name] = (torch.randn(spec.shape) * 0.02 + 0.01).to(dtype)
    return tensors


def _excluded(made: Made, modules: list[str]) -> list[str]:
    """Modules that the config leaves unquantized."""
    declared = made.packed if made.declared is None else made.declared
    return [name for name in modules if (group := group_of(name)) and group not in declared]


def _spelled(made: Made, names: list[str]) -> list[str]:
    """Exclusions the way ``style`` spells them, ``regex`` as compressed-tensors has them."""
    if made.style == "shard":
        return names
    if made.style == "fused":
        spelled = []
        for name in names:
            parent, _, last = name.rpartition(".")
            spelled.append(f"{parent}.{FUSED[last]}" if last in FUSED else name)
        return list(dict.fromkeys(spelled))
    kinds = {"mtp": r"re:^mtp\.layers\..*", "fc": r"re:^mtp\.fc$", "lm_head": "lm_head",
             "small": "re:.*in_proj_[ab]$", "vision": r"re:.*visual\..*"}  # fmt: skip
    return list(dict.fromkeys(kinds[group] for name in names if (group := group_of(name))))


def _quantization(made: Made, modules: list[str]) -> dict[str, Any] | None:
    declared = made.packed if made.declared is None else made.declared
    excluded = _excluded(made, modules)
    names = _spelled(made, excluded)
    prefix = "model.language_model.layers" if made.nested else "model.layers"
    match made.format:
        case "bf16":
            return None
        case "packed":
            weights = {"num_bits": 4, "type": "int", "symmetric": not made.zero[1], "group_size": GROUP}
            weights |= {"strategy": "group", "actorder": None}
            targets = ["Linear", *(["lm_head"] if "lm_head" in declared else [])]
            return {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"targets": targets, "weights": weights}},
                "ignore": names,
                "quantization_status": "compressed",
            }
        case "fp8":
            return {
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": _plain(made, names),
            }
        case "awq":
            kinds = {"mtp": "mtp.layers", "fc": "mtp.fc", "lm_head": "lm_head", "vision": "visual"}
            kept = list(dict.fromkeys(kinds.get(group_of(n) or "", n.rpartition(".")[2]) for n in excluded))
            return {
                "quant_method": "awq",
                "bits": 4,
                "group_size": GROUP,
                "zero_point": True,
                "version": "gemm",
                "lm_head": "lm_head" in declared,
                "modules_to_not_convert": kept if made.style == "regex" else _plain(made, names),
            }
        case "auto-round":
            return {
                "quant_method": "auto-round",
                "packing_format": "auto_round:auto_gptq",
                "bits": 4,
                "group_size": GROUP,
                "sym": True,
                "data_type": "int",
                "block_name_to_quantize": [prefix, *(["mtp.layers"] if "mtp" in declared else [])],
                "extra_config": {n.replace("re:", ""): {"bits": 16} for n in names if n != "lm_head"}
                | ({"lm_head": {"bits": 4}} if "lm_head" in declared else {}),
            }
        case "gptq":
            dynamic: dict[str, Any] = {}
            if "mtp" not in declared and "fc" not in declared:
                dynamic = {"shard": {r"-:^mtp\.": {}}, "fused": {}, "regex": {r"-:.*mtp.*": {}}}[made.style]
            return {
                "quant_method": "gptq",
                "bits": 4,
                "group_size": GROUP,
                "sym": True,
                "desc_act": False,
                "lm_head": "lm_head" in declared,
                **({"dynamic": dynamic} if dynamic else {}),
            }


def _plain(made: Made, names: list[str]) -> list[str]:
    """Patterns as substrings, for lists that know no patterns."""
    if made.style != "regex":
        return names
    kinds = {r"re:^mtp\.layers\..*": "mtp.layers", r"re:^mtp\.fc$": "mtp.fc", r"re:.*visual\..*": "visual"}
    out = [kinds.get(name, name) for name in names]
    return [n for n in out if not n.startswith("re:")] + (
        ["in_proj_a", "in_proj_b"] if "re:.*in_proj_[ab]$" in out else []
    )


def build(made: Made, folder: Path, companions: Path | None = None) -> Path:
    """Write the checkpoint; ``companions`` is a folder whose tokenizer and processor files it gets."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    modules: list[str] = []
    tensors = _tensors(made, modules)
    config = _config(made)
    quantization = _quantization(made, modules)
    if quantization is not None:
        _merge(quantization, made.quantization)
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("mtp.")}
    files = {"model-00001-of-00001.safetensors": tensors}
    match made.head:
        case "inline":
            tensors |= head
        case "separate" | "unindexed":
            files["mtp.safetensors"] = head
        case "subfolder":
            files["mtp/weights.safetensors"] = head
        case "model.mtp" | "language_model.mtp":
            tensors |= {f"{made.head.removesuffix('mtp')}{name}": t for name, t in head.items()}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        save_file(content, path, metadata={"format": "pt"})
    write_index(
        folder, {n: f for n, f in files.items() if n != "mtp.safetensors" or made.head != "unindexed"}
    )
    if companions:
        for path in companions.iterdir():
            if path.suffix != ".safetensors" and path.name not in {"config.json", INDEX}:
                os.link(path, folder / path.name)
    return folder


def write_index(folder: Path, files: Mapping[str, Tensors]) -> None:
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    total = sum(t.nbytes for tensors in files.values() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
