"""The corpus's GPTQ bases without gptqmodel: rounded to nearest, which a loader cannot tell from GPTQ."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gptq_hybrid.checkpoint import layout_for
from gptq_hybrid.demo.builder import DemoSpec, build_demo_checkpoint
from gptq_hybrid.packing import pack, quantize_rtn
from tests.corpus.bases import write_index

GROUP = 128


def _permuted(g_idx: torch.Tensor) -> torch.Tensor:
    """The same order for all modules of a width, as shards of a fused module need it."""
    generator = torch.Generator().manual_seed(len(g_idx))
    return g_idx[torch.randperm(len(g_idx), generator=generator)]


def rounded_checkpoint(folder: Path, recipe: str) -> Path:
    """The demo checkpoint in four bits, laid out as gptqmodel's recipes ``static`` and ``reference`` are."""
    build_demo_checkpoint(folder, DemoSpec(mtp="separate"))
    config = json.loads((folder / "config.json").read_text())
    wanted = {linear.weight.name: linear.name for linear in layout_for(config).quantized}
    act_order = recipe == "reference"
    for path in folder.glob("model-*.safetensors"):
        tensors = load_file(path)
        for name in sorted(wanted.keys() & tensors.keys()):
            codes, scales = quantize_rtn(tensors.pop(name), 4, GROUP, search=False)
            parts = pack(codes, scales.to(torch.float16), 4)
            if act_order:
                parts["g_idx"] = _permuted(parts["g_idx"])
            tensors |= {f"{wanted[name]}.{part}": value.contiguous() for part, value in parts.items()}
        path.unlink()
        save_file(tensors, path, metadata={"format": "pt"})
    quantization = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "sym": True,
        "desc_act": act_order,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "dynamic": {r"-:^mtp\.": {}},
        "meta": {"quantizer": ["gptqmodel:7.6.0"]},
    }
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps(quantization))
    write_index(folder)
    return folder
