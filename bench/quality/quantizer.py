"""One experiment to weights: gptqmodel through its own API, round-to-nearest, or a change on top of either."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.quality.grid import Experiment, Text
from gptq_hybrid.packing import dequantize, pack, quantize_rtn
from gptq_hybrid.streaming import CheckpointWeights, Overlay, Weights

_HERE = Path(__file__).parent


def unpack_pool(work: Path) -> Path:
    """`calibration.jsonl.xz` as one file a domain in WORK/pool; returns that folder."""
    pool = work / "pool"
    if not pool.is_dir():
        pool.mkdir(parents=True)
        rows: dict[str, list[str]] = {}
        with lzma.open(_HERE / "calibration.jsonl.xz", "rt", encoding="utf-8") as lines:
            for line in lines:
                rows.setdefault(json.loads(line)["domain"], []).append(line)
        for domain, texts in rows.items():
            (pool / f"{domain}.jsonl").write_text("".join(texts), encoding="utf-8")
    return pool


def calibration(text: Text, pool: Path, tokenizer: Any) -> tuple[list[dict[str, list[int]]], dict[str, Any]]:
    """Rows of token ids and the manifest of ``text``, through the mixes that ``qwen36 quantize`` takes."""
    from gptq_hybrid.calibration import load_calibration

    parts = [
        f'[[part]]\nname = "{domain}"\nsource = "{domain}.jsonl"\nweight = {weight:.6f}\n'
        for domain, weight in text.domains.items()
    ]
    mix = pool / "mix.toml"
    mix.write_text('description = "An experiment."\n\n' + "\n".join(parts), encoding="utf-8")
    loaded = load_calibration(
        str(mix), tokenizer, samples=text.samples, max_length=text.length, seed=text.seed, pack=text.pack
    )
    return loaded.rows, loaded.manifest


def quantize(
    experiment: Experiment, source: Path, target: Path, pool: Path, tokenizer: Any
) -> dict[str, Any]:
    """Quantize with gptqmodel into ``target``; returns what the run said of its calibration and its modules."""
    import gptq_hybrid

    gptq_hybrid.register()
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import FOEMConfig, GPTAQConfig

    rows, manifest = calibration(experiment.text, pool, tokenizer)
    extra: dict[str, Any] = {}
    if experiment.foem is not None:
        extra["foem"] = FOEMConfig(**experiment.foem)
    if experiment.gptaq is not None:
        extra["gptaq"] = GPTAQConfig(**experiment.gptaq)
    model = GPTQModel.load(str(source), QuantizeConfig(**{**(experiment.settings or {}), **extra}))
    # With GPTAQ gptqmodel 7.6.0 fails on padded batches: it keeps the unquantized model's inputs of one row only.
    native = bool(experiment.gptaq or (experiment.foem or {}).get("alpha"))
    model.quantize([dict(row) for row in rows], batch_size=1 if native else 8)
    model.save(str(target))
    errors = [r.relative_error for r in model.module_records.values() if r.relative_error is not None]
    return {
        "calibration_tokens": sum(len(row["input_ids"]) for row in rows),
        "calibration_rows": len(rows),
        "calibration_domains": {
            name: counts.get("tokens") for name, counts in manifest.get("domains", {}).items()
        },
        "relative_error_mean": sum(errors) / len(errors) if errors else None,
        "outcomes": sorted({r.outcome for r in model.module_records.values()}),
    }


def weights(experiment: Experiment, source: Path, checkpoint: Path) -> Weights:
    """What the experiment's model computes with. ``checkpoint``: its own, or its base's."""
    if experiment.rtn is not None:
        linears = {f"{linear.name}.weight" for linear in CheckpointWeights(source).layout.quantized}
        return Overlay(CheckpointWeights(source), _rtn_where(linears.__contains__, experiment.rtn))
    source_weights: Weights = CheckpointWeights(checkpoint)
    for pattern, how in experiment.overlay.items():
        source_weights = Overlay(source_weights, _where(pattern, how))
    return source_weights


def _rtn_where(is_linear: Callable[[str], bool], settings: Mapping[str, Any]) -> Callable[[str, Any], Any]:
    def replace(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return _rtn(tensor, **settings) if is_linear(name) else tensor

    return replace


def _where(pattern: str, how: str) -> Callable[[str, Any], Any]:
    expression = re.compile(pattern)

    def replace(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return _HOW[how](tensor) if expression.match(name) else tensor

    return replace


def _rtn(tensor: torch.Tensor, *, bits: int, search: bool, group_size: int = 128) -> torch.Tensor:
    """Through the packed form: what a checkpoint would hold. Outputs are padded to whole words."""
    rows = tensor.shape[0]
    padded = torch.nn.functional.pad(tensor.float(), (0, 0, 0, -rows % 32))
    parts = pack(*quantize_rtn(padded, bits, group_size, search=search), bits)
    return dequantize(parts["qweight"], parts["scales"], parts["qzeros"], parts["g_idx"], bits)[:rows]


def _fp8(tensor: torch.Tensor) -> torch.Tensor:
    """e4m3 with one float32 scale per output channel, as vLLM stores FP8 linears."""
    wide = tensor.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return (wide / scale).to(torch.float8_e4m3fn).float() * scale


_HOW: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "w4": lambda tensor: _rtn(tensor, bits=4, search=True),
    "w4-plain": lambda tensor: _rtn(tensor, bits=4, search=False),
    "w8": lambda tensor: _rtn(tensor, bits=8, search=True),
    "fp8": _fp8,
}
