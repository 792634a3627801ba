"""The whole scan on the constructed checkpoint: interrupted and resumed, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.packing import dequantize, pack, quantize_rtn
from gptq_hybrid.sensitivity import ScanRequest, plot_sensitivity, scan, sensitivity_tables, summarize_scan
from gptq_hybrid.sensitivity._passes import count_fitting, group_variants
from gptq_hybrid.sensitivity._precisions import Stored
from gptq_hybrid.sensitivity._scan import EVERYTHING
from gptq_hybrid.sensitivity._walk import Variant, variant_key
from gptq_hybrid.streaming import CheckpointWeights

from .test_variants import COARSE, unit

TEXTS = [
    "The scan replaces one module at a time and leaves all others alone.",
    "int main(void) { return 0; }",
]
PACKED = "model.language_model.layers.1.mlp.down_proj"


@pytest.fixture
def request_(original: DemoCheckpoint, tmp_path: Path) -> ScanRequest:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return ScanRequest(
        original.path, tmp_path / "work", (str(data),), bits=(4,), max_length=24, drafts=1, device="cpu"
    )


def test_an_interrupted_scan_goes_on_and_ends_with_the_same_numbers(
    request_: ScanRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    whole = scan(replace(request_, work=tmp_path / "other"), on_progress=lambda *at: steps.append(at))
    assert steps[-1][0] == steps[-1][1] == len(steps)

    def stop(done: int, total: int) -> None:
        if done == total * 2 // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(request_, on_progress=stop)
    rest: list[tuple[int, int]] = []
    resumed = scan(request_, on_progress=lambda *at: rest.append(at))
    assert 0 < len(rest) < len(steps)
    assert resumed.sums.keys() == whole.sums.keys()
    for key, arrays in whole.sums.items():
        for name, values in arrays.items():
            np.testing.assert_array_equal(resumed.sums[key][name], values, err_msg=f"{key} {name}")
    again: list[tuple[int, int]] = []
    scan(request_, on_progress=lambda *at: again.append(at))
    assert again == []
    # Another way of rounding gives other numbers: none of the kept ones may be among them.
    monkeypatch.setattr("gptq_hybrid.sensitivity._scan.SEARCH", -1)
    scan(request_, on_progress=lambda *at: again.append(at))
    assert len(again) == len(steps)


def test_figures_are_means_over_tokens_and_domains(request_: ScanRequest) -> None:
    scanned = scan(request_)
    result = summarize_scan(scanned, reference="original", quantized=None, resamples=200)
    tokens = sum(len(d.input_ids) - 1 for d in scanned.documents)
    in_layers = [m for m in result.modules if m.layer is not None]
    added = 0.0
    for module in in_layers:
        sums = scanned.sums[variant_key(scanned.precisions[0], module.name)]
        measured = module.measured_in("rtn4")
        assert measured is not None
        assert measured.kld is not None
        assert measured.kld.value == pytest.approx(sums["kld"].sum() / tokens)
        added += measured.kld.value
    together = scanned.sums[variant_key(scanned.precisions[0], EVERYTHING)]["kld"].sum() / tokens
    assert result.together[0].kld.value == pytest.approx(together)
    assert result.together[0].kld_sum.value == pytest.approx(added)
    assert result.together[0].ratio.value == pytest.approx(added / together)
    assert sum(kind.kld_sum.value for kind in result.kinds) == pytest.approx(added)
    assert sum(kind.count for kind in result.kinds) == len(in_layers)


def packed_copy(original: Path, folder: Path) -> Path:
    """The checkpoint with one module in 4-bit GPTQ, the codes those of a scale that is not ours."""
    folder.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for file in original.glob("*.safetensors"):
        tensors |= load_file(file)
    codes, scales = quantize_rtn(tensors.pop(f"{PACKED}.weight"), 4, 128, search=False)
    for part, tensor in pack(codes, scales, 4).items():
        tensors[f"{PACKED}.{part}"] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((original / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for file in original.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_quantized_checkpoint_gives_its_own_weights(
    request_: ScanRequest, original: DemoCheckpoint, tmp_path: Path
) -> None:
    quant = packed_copy(original.path, tmp_path / "quant")
    scanned = scan(replace(request_, quantized=quant, bits=()))
    assert [precision.label for precision in scanned.precisions] == ["stored"]
    measured = [key for key in scanned.sums if PACKED in key]
    # Nothing else is quantized there, so nothing else is tried.
    assert len(measured) == 1
    assert sum("layers" in key for key in scanned.sums) == 1
    stored = scanned.precisions[0]
    assert isinstance(stored, Stored)
    weights = CheckpointWeights(quant)
    linear = next(q for q in weights.layout.quantized if q.name == PACKED)
    raw = load_file(quant / "model.safetensors")
    parts = {part: raw[f"{PACKED}.{part}"] for part in ("qweight", "scales", "qzeros", "g_idx")}
    dense = CheckpointWeights(original.path).under(f"{PACKED}.")["weight"]
    assert torch.equal(stored.weight(linear, dense), dequantize(**parts, bits=4))
    result = summarize_scan(scanned, reference="original", quantized="quant", resamples=200)
    module = next(m for m in result.modules if m.name == PACKED)
    assert module.measured[0].bits == 4
    assert module.measured[0].bytes == sum(t.nbytes for t in parts.values())
    out = StringIO()
    Console(file=out, width=110).print(sensitivity_tables(result))
    assert "modules of quant" in out.getvalue()
    plot_sensitivity(result, tmp_path / "stored.png")
    assert (tmp_path / "stored.png").is_file()


def test_groups_hold_no_more_than_fits_and_lose_no_variant(weights: CheckpointWeights) -> None:
    names = [f"model.language_model.layers.{n}.mlp.{k}" for n in (5, 0, 5, 7) for k in ("down_proj",)]
    variants = [Variant(f"{n}-{i}", COARSE, (unit(weights, n),)) for i, n in enumerate(names)]
    groups = group_variants(variants, 1, 8)
    assert [len(group) for group in groups] == [1, 1, 1, 1]
    assert [group[0].first for group in groups] == [0, 5, 5, 7]
    assert [[v.first for v in group] for group in group_variants(variants, 9, 64)] == [[0, 5, 5, 7]]
    assert [[v.first for v in group] for group in group_variants(variants, 9, 8)] == [[0], [5, 5], [7]]


def test_too_little_memory_is_said_before_the_scan(request_: ScanRequest) -> None:
    assert count_fitting(10 * 1000, 1000) == 6
    with pytest.raises(HybridError, match="main memory") as error:
        scan(replace(request_, memory=1000))
    assert "--memory" in (error.value.remedy or "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_size": 96}, "groups of 96 do not divide"),
        ({"bits": (9,)}, "--bits 9"),
        ({"bits": ()}, "nothing to compare"),
        ({"dtype": "float64"}, "float64"),
        ({"device": "abacus"}, "abacus"),
        ({"data": ("/nowhere.jsonl",)}, "nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(request_: ScanRequest, fields: dict[str, object], message: str) -> None:
    with pytest.raises(HybridError, match=message):
        scan(replace(request_, **fields))


def test_an_original_in_place_of_the_quantized_checkpoint_is_refused(request_: ScanRequest) -> None:
    with pytest.raises(HybridError, match="no quantized module"):
        scan(replace(request_, quantized=request_.reference))
