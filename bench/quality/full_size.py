"""What `qwen36 eval` needs at the 27B's sizes: a slice with random weights, its real widths and vocabulary.

    python -m bench.quality.full_size WORK OUT [--layers 4] [--documents 16] [--tune]

Writes a BF16 slice and a round-to-nearest W4 copy into WORK (about 16 GB for 4 layers), scores one against the
other on rows of 2,048 tokens, and OUT/full_size.json: peak GPU memory and seconds. Needs a GPU. Figures
of a whole model follow by repetition of layers, which is an extrapolation and labelled so. With `--tune` the copy's
codes are rounded again on all rows instead, then it is tuned for four steps of 8,192 tokens, and
OUT/tuning_full_size.json is written.
"""

from __future__ import annotations

import json
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bench import dummy
from bench.arguments import command_line
from bench.results import save
from gptq_hybrid.calibration import encode_documents, load_documents
from gptq_hybrid.checkpoint import layout_for, write_index
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.machine import environment
from gptq_hybrid.evaluate import EvalRequest, score
from gptq_hybrid.packing import pack, quantize_rtn
from gptq_hybrid.recipes import TuneSettings
from gptq_hybrid.tuning import AlignRequest, TuneRequest, align, tune

_MINI = Path(__file__).parents[1] / "mini"


def build(folder: Path, layers: int) -> dict[str, Any]:
    """The BF16 slice; returns its config."""
    config = dummy.config(layers, desc_act=False)
    del config["quantization_config"], config["vision_config"]
    layout = layout_for(config)
    folder.mkdir(parents=True)
    generator = torch.Generator("cuda").manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    count = 0
    for spec in layout.dense:
        # 1/√in keeps activations of order one through the layers; norms here are offsets from one.
        wide = len(spec.shape) > 1
        std = spec.shape[-1] ** -0.5 if wide else 0.02
        tensor = torch.randn(spec.shape, generator=generator, device="cuda") * std
        shard[spec.name] = tensor.to(torch.bfloat16).cpu()
        if sum(t.nbytes for t in shard.values()) > 4 << 30 or spec is layout.dense[-1]:
            save_file(shard, folder / f"model-{count:05}.safetensors", metadata={"format": "pt"})
            shard, count = {}, count + 1
    _finish(folder, config)
    return config


def quantize(source: Path, target: Path, config: dict[str, Any]) -> None:
    """A W4 copy by plain rounding."""
    from safetensors import safe_open

    layout = layout_for(config)
    linears = {linear.weight.name: linear.name for linear in layout.quantized}
    target.mkdir(parents=True)
    for file in sorted(source.glob("*.safetensors")):
        out: dict[str, torch.Tensor] = {}
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                tensor = handle.get_tensor(name)
                if name not in linears:
                    out[name] = tensor
                    continue
                parts = pack(*quantize_rtn(tensor.cuda(), 4, 128, search=False), 4)
                out |= {f"{linears[name]}.{part}": packed.cpu() for part, packed in parts.items()}
        save_file(out, target / file.name, metadata={"format": "pt"})
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    _finish(target, {**config, "quantization_config": settings})


def _finish(folder: Path, config: dict[str, Any]) -> None:
    write_index(folder)
    write_json_atomic(folder / "config.json", config)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(_MINI / "checkpoint" / name, folder / name)


def documents(path: Path, count: int) -> None:
    """Rows of more than 2,048 tokens: held-out texts of the mini model, strung together."""
    texts = [
        json.loads(line)["text"]
        for file in sorted((_MINI / "heldout").glob("*.jsonl"))
        for line in file.open()
    ]
    rows = [{"text": "\n\n".join(texts[i::count]), "domain": "strung"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tuning(original: Path, packed: Path, data: Path) -> dict[str, Any]:
    """Round the copy again, and tune it; peak memory of both, and seconds of each layer and step."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(original)
    texts = [d.input_ids for d in encode_documents(load_documents([str(data)]), tokenizer, 2048)]
    layers, times = [time.perf_counter()], list[float]()
    torch.cuda.reset_peak_memory_stats()
    aligned = align(
        AlignRequest(original, packed, packed.with_name("aligned"), texts, 1 << 20),
        on_layer=lambda *_: layers.append(time.perf_counter()),
    )
    assert aligned is not None
    align_peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    request = TuneRequest(original, aligned, texts, TuneSettings(steps=4, tokens=8192))
    done = tune(request, on_step=lambda *_: times.append(time.perf_counter()))
    assert done is not None
    return {
        "environment": environment("cuda"),
        "align_tokens": sum(map(len, texts)),
        "align_layer_seconds": [round(b - a, 2) for a, b in pairwise(layers)],
        "align_peak_gpu_gib": round(align_peak / 2**30, 2),
        "step_seconds": [round(b - a, 2) for a, b in pairwise(times)],
        "peak_gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "report": done.report,
    }


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "work", "out")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    original, packed, data = args.work / "original", args.work / "w4", args.work / "documents.jsonl"
    config = build(original, args.layers)
    quantize(original, packed, config)
    documents(data, args.documents)
    torch.cuda.empty_cache()
    if args.tune:
        save(args.out / "tuning_full_size.json", tuning(original, packed, data))
        return
    request = EvalRequest(original, (packed,), (str(data),), max_length=2048, drafts=2)
    started = time.perf_counter()
    scored = score(request)
    result = {
        "environment": scored.environment,
        "settings": {**scored.settings, "layers": args.layers, "data": ["strung"]},
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gpu_gib": round((scored.peak_gpu_bytes or 0) / 2**30, 2),
        "mean_kld": round(float(np.concatenate([s.kld for s in scored.scores["w4"]]).mean()), 4),
    }
    save(args.out / "full_size.json", result)
    print(result)


if __name__ == "__main__":
    main()
