"""A 27B of which there are headers alone: what a recipe writes, over holes in the files."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

from gptq_hybrid.checkpoint import INDEX_NAME, LinearSpec, layout_for
from gptq_hybrid.recipes import load_recipe
from tests.checkpoint.test_layout import CONFIG_27B, TEXT_27B

_WIDTHS = {"BF16": 2, "F16": 2, "I32": 4}
_FILE = "model-00001-of-00001.safetensors"
CONFIG = {
    **CONFIG_27B,
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "text_config": {
        **TEXT_27B,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "tie_word_embeddings": False,
    },
}
Tensors = dict[str, tuple[str, tuple[int, ...]]]


def write_27b(folder: Path, recipe: str | None) -> Path:
    """Write what ``recipe`` makes of the 27B; the BF16 original for None. Takes 300 KB of disk."""
    layout = layout_for(CONFIG)
    tensors: Tensors = {}
    if recipe is None:
        tensors = {spec.name: ("BF16", spec.shape) for spec in layout.dense}
        settings = None
    else:
        chosen = load_recipe(recipe)
        packed = dict.fromkeys(layout.quantized, 4)
        if chosen.packaging.lm_head_bits < 16 and layout.output_head is not None:
            packed[layout.output_head] = chosen.packaging.lm_head_bits
        if chosen.packaging.mtp_bits < 16:
            packed |= dict.fromkeys(layout.mtp_linears, chosen.packaging.mtp_bits)
        for linear, bits in packed.items():
            tensors |= _packed(linear, bits)
        vision = () if chosen.packaging.text_only else layout.vision
        names = {linear.weight.name for linear in packed}
        rest = [spec for spec in (*layout.plain, *vision, *layout.mtp) if spec.name not in names]
        tensors |= {spec.name: ("BF16", spec.shape) for spec in rest}
        settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    folder.mkdir(parents=True)
    _write(folder / _FILE, tensors)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, _FILE)}))
    config = CONFIG if settings is None else {**CONFIG, "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _packed(linear: LinearSpec, bits: int) -> Tensors:
    n, k = linear.out_features, linear.in_features
    return {
        f"{linear.name}.qweight": ("I32", (k * bits // 32, n)),
        f"{linear.name}.qzeros": ("I32", (k // 128, n * bits // 32)),
        f"{linear.name}.scales": ("F16", (k // 128, n)),
        f"{linear.name}.g_idx": ("I32", (k,)),
    }


def _write(path: Path, tensors: Tensors) -> None:
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + _WIDTHS[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + offset)
