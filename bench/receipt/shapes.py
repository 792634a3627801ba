"""Two folders of the 27B's shapes, for `qwen36 receipt --reference-card` with `--load-format dummy`.

    python -m bench.receipt.shapes FOLDER [--tiny]

FOLDER/W4A16-27B is quantized as the reference checkpoint, FOLDER/FP8-27B as the FP8 original (blocks of 128 × 128).
Files have the sizes of real ones and are holes, but for the MTP head, which is looked at before a start.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bench.arguments import command_line
from bench.dummy import config
from bench.full_size import Tensor, body_tensors, write_file
from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, layout_for

LAYERS, TINY_LAYERS, POSITIONS, BLOCK, BODY = 64, 4, 262144, 128, "model-00001-of-00001.safetensors"
TOKENIZER = Path(__file__).parents[1] / "mini" / "checkpoint"


def fp8(ours: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """Config and tensors with the quantized linears in FP8 and a scale for each block, all else in BF16."""
    layout = layout_for(ours)
    kept = (*layout.plain, *layout.vision)
    made: list[Tensor] = [(spec.name, "BF16", spec.shape) for spec in kept]
    for linear in layout.quantized:
        n, k = linear.out_features, linear.in_features
        made.append((f"{linear.name}.weight", "F8_E4M3", (n, k)))
        made.append((f"{linear.name}.weight_scale_inv", "F32", (-(-n // BLOCK), -(-k // BLOCK))))
    plain = [s.name.removesuffix(".weight") for s in (*kept, *layout.mtp) if len(s.shape) == 2]
    method = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    settings = {**method, "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": plain}
    return {**ours, "quantization_config": settings}, made


def write(folder: Path, description: dict[str, Any], tensors: list[Tensor]) -> None:
    folder.mkdir(parents=True)
    head: list[Tensor] = [(spec.name, "BF16", spec.shape) for spec in layout_for(description).mtp]
    write_file(folder / BODY, tensors, random=False)
    write_file(folder / MTP_FILE, head, random=True)
    weight_map = dict.fromkeys((t[0] for t in tensors), BODY) | dict.fromkeys((t[0] for t in head), MTP_FILE)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(description, indent=1))
    for pattern in ("tokenizer*", "*processor_config.json", "chat_template.jinja"):
        for path in TOKENIZER.glob(pattern):
            shutil.copy(path, folder)


if __name__ == "__main__":
    parser = command_line(__doc__, "folder")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    ours = config(TINY_LAYERS if given.tiny else LAYERS, desc_act=False, tiny=given.tiny)
    ours["text_config"]["max_position_embeddings"] = POSITIONS
    write(given.folder / "W4A16-27B", ours, list(body_tensors(layout_for(ours))))
    write(given.folder / "FP8-27B", *fp8(ours))
