"""Make checkpoints rounded to nearest, in GPTQ's file layout, from a trained model in a few seconds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.packing import pack, quantize_rtn

MINI = Path(__file__).parents[2] / "bench" / "mini"
CHECKPOINT, HELDOUT = MINI / "checkpoint", MINI / "heldout"
# On both sides of the Gated-DeltaNet chunk of 64.
LENGTHS = (70, 33, 129, 12, 64)
_WEIGHTS = ("*.safetensors", "*.index.json")


def short_documents() -> list[list[int]]:
    """Return token ids of held-out text of several domains, with the lengths ``LENGTHS``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    documents = []
    for domain, length in zip(("en", "python", "zh", "rust", "chat"), LENGTHS, strict=True):
        text = json.loads((HELDOUT / f"{domain}.jsonl").read_text().splitlines()[0])["text"]
        documents.append(tokenizer(text, add_special_tokens=False)["input_ids"][:length])
    assert tuple(map(len, documents)) == LENGTHS
    return documents


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read every tensor that a loader finds."""
    tensors: dict[str, torch.Tensor] = {}
    for name in Checkpoint.open(folder).referenced:
        tensors |= load_file(folder / name)
    return tensors


def copy_with(
    target: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], source: Path = CHECKPOINT
) -> Path:
    """Write a checkpoint of one shard with the tokenizer and templates of ``source``."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_WEIGHTS))
    (target / "config.json").write_text(json.dumps(config, indent=2))
    save_file(
        {k: v.contiguous().clone() for k, v in tensors.items()},
        target / "model.safetensors",
        {"format": "pt"},
    )
    return target


def read_config(folder: Path = CHECKPOINT) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def rounded(
    target: Path,
    bits: int = 4,
    *,
    source: Path = CHECKPOINT,
    also: str | None = None,
    dynamic: Mapping[str, Mapping[str, Any]] | None = None,
    act_order: int | None = None,
) -> Path:
    """Write ``source`` rounded to ``bits`` in groups of 128.

    Args:
        also: linears outside the decoder layers to pack too, as a regular expression of their names.
        dynamic: overrides of ``bits`` by pattern, put into the config as they are.
        act_order: seed of a random order of inputs. As after act order, columns stay where they are and their
            groups do not. The order is drawn for each linear alone, which is all that dequantizing needs.
    """
    config, tensors = read_config(source), read_tensors(source)
    layers = {linear.name for linear in layout_for(config).quantized}
    for name in [n.removesuffix(".weight") for n in tensors if n.endswith(".weight")]:
        if name not in layers and not (also and re.fullmatch(also, name)):
            continue
        rules = [rule for pattern, rule in (dynamic or {}).items() if re.match(pattern.lstrip("+:"), name)]
        own = int(rules[0].get("bits", bits)) if rules else bits
        weight = tensors.pop(f"{name}.weight")
        order = torch.arange(weight.shape[1])
        if act_order is not None:
            order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(act_order))
        codes, scales = quantize_rtn(weight[:, order], own, 128)
        back = order.argsort()
        parts = pack(codes[:, back], scales, own)
        parts["g_idx"] = parts["g_idx"][back]
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": 128,
        "sym": True,
        "desc_act": act_order is not None,
        "checkpoint_format": "gptq",
        **({"dynamic": dict(dynamic)} if dynamic else {}),
    }
    return copy_with(target, tensors, config, source)
