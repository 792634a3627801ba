"""Good checkpoints: BF16 originals, gptqmodel's GPTQ, and other formats with random weights of the right form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gptq_hybrid.checkpoint import Checkpoint, LinearSpec, TensorLayout, layout_for
from gptq_hybrid.demo import DemoSpec, build_demo_checkpoint
from gptq_hybrid.recipes import Packaging
from gptq_hybrid.writer import CheckpointSpec, write_checkpoint

from .case import INDEX, MTP_FILE, Tensors

GROUP = 128
# What every 4-bit checkpoint of the family leaves in BF16, beside norms and convolutions.
SMALL = ("in_proj_a", "in_proj_b")


def _int32(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int64).to(torch.int32)


def _scales(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.rand(*shape) * 0.01 + 0.001).to(dtype)


def _packed(linear: LinearSpec) -> Tensors:
    n, k = linear.out_features, linear.in_features
    return {
        "weight_packed": _int32(n, k // 8),
        "weight_scale": _scales(n, k // GROUP),
        "weight_shape": torch.tensor([n, k]),
    }


def _auto_gptq(linear: LinearSpec) -> Tensors:
    n, k = linear.out_features, linear.in_features
    scales = _scales(k // GROUP, n, dtype=torch.float16)
    return {"qweight": _int32(k // 8, n), "scales": scales, "qzeros": _int32(k // GROUP, n // 8)}


def _awq(linear: LinearSpec) -> Tensors:
    n, k = linear.out_features, linear.in_features
    scales = _scales(k // GROUP, n, dtype=torch.float16)
    return {"qweight": _int32(k, n // 8), "scales": scales, "qzeros": _int32(k // GROUP, n // 8)}


def _fp8(linear: LinearSpec) -> Tensors:
    n, k = linear.out_features, linear.in_features
    weight = torch.randn(n, k).clamp(-3, 3).to(torch.float8_e4m3fn)
    return {"weight": weight, "weight_scale_inv": _scales(-(-n // 128), -(-k // 128))}


def _compressed_config(layout: TensorLayout, vision: list[str]) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": GROUP, "strategy": "group"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {**weights, "actorder": None}}},
        "ignore": ["lm_head", "re:.*mtp.*", "re:.*in_proj_[ab]$", "re:.*visual.*"],
        "quantization_status": "compressed",
    }


def _auto_round_config(layout: TensorLayout, vision: list[str]) -> dict[str, Any]:
    small = {f"{layout.layers_prefix}.{i}.linear_attn.{n}": {"bits": 16} for i in range(3) for n in SMALL}
    return {
        "quant_method": "auto-round",
        "packing_format": "auto_round:auto_gptq",
        "bits": 4,
        "group_size": GROUP,
        "sym": True,
        "data_type": "int",
        "block_name_to_quantize": layout.layers_prefix,
        "extra_config": small,
        "autoround_version": "0.9.0",
    }


def _awq_config(layout: TensorLayout, vision: list[str]) -> dict[str, Any]:
    excluded = ["mtp", "visual", *SMALL]
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": excluded,
    }


def _fp8_config(layout: TensorLayout, vision: list[str]) -> dict[str, Any]:
    small = [f"{layout.layers_prefix}.{i}.linear_attn.{n}" for i in range(3) for n in SMALL]
    return {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "mtp.fc", *small, *vision],
    }


def write_index(folder: Path) -> None:
    """Write an index of all files of a folder."""
    weight_map: dict[str, str] = {}
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            weight_map[name], total = path.name, total + tensor.nbytes
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


def _requantized(
    source: Path,
    target: Path,
    make: Callable[[LinearSpec], Tensors],
    config_of: Callable[[TensorLayout, list[str]], dict[str, Any]],
    *,
    head: bool = False,
) -> Path:
    """A copy of a BF16 checkpoint whose linears are stored as ``make`` says; with ``head``, the head's too."""
    torch.manual_seed(0)
    target.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    layout = layout_for(config)
    linears = {linear.weight.name: linear for linear in layout.quantized}
    if head:
        for spec in layout.mtp:
            if len(spec.shape) == 2 and spec.name != "mtp.fc.weight":
                linears[spec.name] = LinearSpec(spec.name.removesuffix(".weight"), *spec.shape)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
            continue
        out: Tensors = {}
        for name, tensor in load_file(path).items():
            if name in linears:
                module = linears[name]
                out |= {f"{module.name}.{part}": value for part, value in make(module).items()}
            else:
                out[name] = tensor
        save_file(out, target / path.name, metadata={"format": "pt"})
    vision = [s.name.removesuffix(".weight") for s in layout.vision if s.name.endswith("weight")]
    config["quantization_config"] = config_of(layout, vision)
    (target / "config.json").write_text(json.dumps(config))
    write_index(target)
    return target


def _repackaged(quantized: Path, original: Path, target: Path, packaging: Packaging) -> Path:
    """Write gptqmodel's shards with another packaging, without running gptqmodel again."""

    def save_shards(folder: Path) -> None:
        for path in quantized.iterdir():
            if path.name != MTP_FILE and (path.suffix == ".safetensors" or path.name.startswith("quant")):
                (folder / path.name).write_bytes(path.read_bytes())
        saved = json.loads((folder / "quantize_config.json").read_text())
        del saved["dynamic"]
        (folder / "quantize_config.json").write_text(json.dumps(saved))
        (folder / "config.json").write_bytes((original / "config.json").read_bytes())

    write_checkpoint(CheckpointSpec(Checkpoint.open(original), packaging=packaging), target, save_shards)
    return target


class Bases:
    """Builds each base once below ``folder``; ``gptq()`` runs gptqmodel, which takes most of a minute."""

    def __init__(self, folder: Path, gptq: Callable[[str], Path]) -> None:
        self._folder = folder
        self._gptq = gptq
        self._made: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Path:
        if name not in self._made:
            self._made[name] = BASES[name](self)
        return self._made[name]

    def recipe(self, name: str) -> Path:
        return self._gptq(name)

    def bf16(self, **spec: Any) -> Path:
        path = self._folder / "-".join(["bf16", *map(str, spec.values())])
        if not path.exists():
            build_demo_checkpoint(path, DemoSpec(**spec))
        return path

    def repackaged(self, name: str, packaging: Packaging) -> Path:
        """The recipe `static` with another packaging."""
        return _repackaged(self["gptq"], self.bf16(mtp="inline"), self._folder / name, packaging)

    def requantized(self, name: str, *arguments: Any, **options: Any) -> Path:
        return _requantized(self.bf16(mtp="separate"), self._folder / name, *arguments, **options)


BASES: dict[str, Callable[[Bases], Path]] = {
    "gptq": lambda bases: bases.recipe("static"),
    "gptq-compact": lambda bases: bases.repackaged(
        "gptq-compact", Packaging(lm_head_bits=8, mtp_bits=4, text_only=True)
    ),
    "gptq-act-order": lambda bases: bases.recipe("reference"),
    "bf16": lambda bases: bases.bf16(mtp="separate"),
    "bf16-inline": lambda bases: bases.bf16(mtp="inline"),
    "bf16-text": lambda bases: bases.bf16(mtp="separate", text_only=True),
    "packed": lambda bases: bases.requantized("packed", _packed, _compressed_config),
    "auto-round": lambda bases: bases.requantized("auto-round", _auto_gptq, _auto_round_config),
    "awq": lambda bases: bases.requantized("awq", _awq, _awq_config),
    "fp8": lambda bases: bases.requantized("fp8", _fp8, _fp8_config, head=True),
}

__all__ = ["BASES", "MTP_FILE", "Bases", "write_index"]
