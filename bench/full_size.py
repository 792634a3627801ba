"""A checkpoint with the 27B's names, shapes and sizes whose body is mostly a hole in the file system.

What a check reads is real: headers, index, config, every ``g_idx``, the beginning of all scales, and the whole
0.85 GB MTP head.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, TensorLayout, layout_for
from vllm_qwen36_plugin.tune.prefill.shapes import CONFIG_27B

TEXT_27B = {**CONFIG_27B, "mtp_num_hidden_layers": 1, "tie_word_embeddings": False}
VISION_27B = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
    "out_hidden_size": 5120,
}
CONFIG = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "text_config": TEXT_27B,
    "vision_config": VISION_27B,
    "quantization_config": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "desc_act": False,
    },
}
SHARDS = 5
Tensor = tuple[str, str, tuple[int, ...]]
WIDTH = {"BF16": 2, "F16": 2, "I32": 4, "F32": 4, "F8_E4M3": 1}
# BF16 and F16 values of about 0.01 to 1: every high byte is 0x3c.
_FINITE = b"".join(bytes((byte, 0x3C)) for byte in range(256)) * 8


def body_tensors(layout: TensorLayout) -> Iterable[Tensor]:
    for linear in layout.quantized:
        n, k = linear.out_features, linear.in_features
        yield f"{linear.name}.qweight", "I32", (k // 8, n)
        yield f"{linear.name}.qzeros", "I32", (k // 128, n // 8)
        yield f"{linear.name}.scales", "F16", (k // 128, n)
        yield f"{linear.name}.g_idx", "I32", (k,)
    for spec in (*layout.plain, *layout.vision):
        yield spec.name, "BF16", spec.shape


def write_file(path: Path, tensors: list[Tensor], *, random: bool) -> None:
    """A safetensors file: whole header; data random but finite, or a hole with g_idx and scales in it."""
    header: dict[str, Any] = {}
    offset = 0
    for name, dtype, shape in tensors:
        size = WIDTH[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        # 0x3c.. in every high byte: BF16 values of about 0.01 to 0.03.
        block = b"".join(bytes((byte, 0x3C)) for byte in os.urandom(1 << 20)) if random else b""
        for begin in range(0, offset if random else 0, max(1, len(block))):
            out.write(block[: offset - begin])
        out.truncate(8 + len(raw) + offset)
        for name, _, shape in () if random else tensors:
            if name.endswith((".g_idx", ".scales")):
                out.seek(8 + len(raw) + header[name]["data_offsets"][0])
                out.write(
                    array("i", (i // 128 for i in range(shape[0]))).tobytes()
                    if name.endswith("x")
                    else _FINITE
                )


def build(folder: Path) -> dict[str, Any]:
    """The synthetic checkpoint; returns what it holds."""
    layout = layout_for(CONFIG)
    body = list(body_tensors(layout))
    head: list[Tensor] = [(spec.name, "BF16", spec.shape) for spec in layout.mtp]
    weight_map = {}
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        part = body[number * len(body) // SHARDS : (number + 1) * len(body) // SHARDS]
        write_file(folder / name, part, random=False)
        weight_map |= {tensor[0]: name for tensor in part}
    write_file(folder / MTP_FILE, head, random=True)
    weight_map |= {tensor[0]: MTP_FILE for tensor in head}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
    ):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text("{%- if tools %}<tool_call><function=x>{% endif %}<think>")
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return {"tensors": len(weight_map), "files": len(sizes), "gb": round(sum(sizes) / 1e9, 2)}
