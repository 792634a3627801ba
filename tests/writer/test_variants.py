"""Checkpoints of mixed bits with packed heads and no vision tower: what gptqmodel and the writer made of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from gptq_hybrid.checkpoint import MTP_FILE, Checkpoint, layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check
from gptq_hybrid.packing import dequantize, pack, quantize_rtn
from gptq_hybrid.recipes import Packaging, load_recipe
from gptq_hybrid.recipes.sizes import quantized_bytes

torch = pytest.importorskip("torch")

EVERYTHING = Path(__file__).parents[1] / "recipes" / "everything.toml"
LAYER = "model.language_model.layers"
DENSE = f"{LAYER}.3.self_attn.o_proj"


@pytest.fixture
def written(quantized: Callable[..., Any]) -> Path:
    path: Path = quantized(str(EVERYTHING)).path
    return path


def tensor(folder: Path, name: str) -> Any:
    checkpoint = Checkpoint.open(folder)
    info = {**checkpoint.stray, **checkpoint.loaded}[name]
    with safe_open(folder / info.file, framework="pt") as file:
        return file.get_tensor(name)


def parts(folder: Path, module: str) -> dict[str, Any]:
    return {part: tensor(folder, f"{module}.{part}") for part in ("qweight", "scales", "qzeros", "g_idx")}


def expected_bits(module: str) -> int:
    if module == DENSE:
        return 16
    one = f"{LAYER}.1.mlp."
    return 8 if ".linear_attn." in module or module in (f"{one}gate_proj", f"{one}up_proj") else 4


def test_it_serves_without_a_finding(written: Path) -> None:
    report = check(written, vllm="0.32.0")
    assert report.findings == ()
    assert report.verdict == "serves"


def test_gptqmodel_gave_every_module_the_bits_of_the_recipe(written: Path, original: DemoCheckpoint) -> None:
    checkpoint = Checkpoint.open(written)
    for linear in layout_for(checkpoint.config).quantized:
        bits = expected_bits(linear.name)
        source = tensor(original.path, linear.weight.name)
        if bits == 16:
            assert torch.equal(tensor(written, linear.weight.name), source)
            continue
        packed = parts(written, linear.name)
        assert packed["qweight"].shape == (linear.in_features * bits // 32, linear.out_features), linear.name
        dense = dequantize(**packed, bits=bits)
        error = (dense - source.float()).square().sum() / source.float().square().sum()
        assert error < (0.0005 if bits == 8 else 0.05), linear.name


def test_the_output_head_is_the_rounded_original(written: Path, original: DemoCheckpoint) -> None:
    codes, scales = quantize_rtn(tensor(original.path, "lm_head.weight"), 8, 128, scale_dtype=torch.bfloat16)
    for part, expected in pack(codes, scales.to(torch.float16), 8).items():
        assert torch.equal(tensor(written, f"lm_head.{part}"), expected)
    assert "lm_head.weight" not in Checkpoint.open(written).loaded


def test_the_mtp_head_is_packed_and_its_norms_are_the_originals(
    written: Path, original: DemoCheckpoint
) -> None:
    checkpoint = Checkpoint.open(written)
    layout = layout_for(checkpoint.config)
    names = {name for name, info in checkpoint.loaded.items() if info.file == MTP_FILE}
    linears = layout.mtp_linears
    assert names == {n for n in checkpoint.loaded if n.startswith("mtp.")}
    assert len(names) == 4 * len(linears) + len(layout.mtp) - len(linears)
    for linear in linears:
        weight = tensor(original.path, linear.weight.name)
        codes, scales = quantize_rtn(weight, 4, 128, scale_dtype=torch.bfloat16)
        for part, expected in pack(codes, scales.to(torch.float16), 4).items():
            assert torch.equal(tensor(written, f"{linear.name}.{part}"), expected)
    for spec in layout.mtp:
        if len(spec.shape) == 1:
            assert torch.equal(tensor(written, spec.name), tensor(original.path, spec.name))


def test_there_is_no_vision_tower_and_the_config_says_so(written: Path) -> None:
    checkpoint = Checkpoint.open(written)
    assert not any(name.startswith("model.visual.") for name in checkpoint.loaded)
    assert checkpoint.config["language_model_only"] is True
    assert checkpoint.config["architectures"] == ["Qwen3_5ForConditionalGeneration"]


def test_both_configs_tell_of_both_heads(written: Path) -> None:
    quantization = json.loads((written / "config.json").read_text())["quantization_config"]
    assert quantization == json.loads((written / "quantize_config.json").read_text())
    assert quantization["lm_head"] is True
    assert quantization["desc_act"] is False
    rules = load_recipe(EVERYTHING).settings["dynamic"]
    assert quantization["dynamic"] == {r"+:^(?:language_model\.)?lm_head$": {"bits": 8}, **rules}


def test_the_log_has_what_gptqmodel_quantized(written: Path) -> None:
    rows = list(csv.DictReader((written / "quant_log.csv").open()))
    assert len(rows) == len(layout_for(Checkpoint.open(written).config).quantized) - 1
    assert {row["outcome"] for row in rows} == {"gptq"}


def test_the_estimate_is_what_is_written(written: Path) -> None:
    checkpoint = Checkpoint.open(written)
    recipe = load_recipe(EVERYTHING)
    total = sum(info.nbytes for info in checkpoint.loaded.values())
    assert quantized_bytes(layout_for(checkpoint.config), recipe.settings, recipe.packaging) == total


@contextmanager
def packaged(model: Any, packaging: Packaging, *, keep_mtp: bool = True) -> Iterator[Any]:
    before = model.packaging
    model.packaging, model.keep_mtp = packaging, keep_mtp
    try:
        yield model
    finally:
        model.packaging, model.keep_mtp = before, True


@pytest.mark.parametrize(
    "choice",
    [{}, {"lm_head_bits": 8}, {"mtp_bits": 4}, {"mtp_bits": 8}, {"text_only": True}],
    ids=["plain", "lm-head", "mtp-4", "mtp-8", "text-only"],
)
def test_each_choice_stands_for_itself(
    quantized: Callable[..., Any], original: DemoCheckpoint, tmp_path: Path, choice: dict[str, Any]
) -> None:
    packaging = Packaging(**choice)
    with packaged(quantized("static").model, packaging) as model:
        model.save(str(tmp_path / "out"))
    report = check(tmp_path / "out", vllm="0.32.0")
    assert report.findings == ()
    loaded = Checkpoint.open(tmp_path / "out").loaded
    assert ("lm_head.qweight" in loaded) is (packaging.lm_head_bits == 8)
    assert ("mtp.fc.qweight" in loaded) is (packaging.mtp_bits < 16)
    assert any(name.startswith("model.visual.") for name in loaded) is not packaging.text_only
    source = Checkpoint.open(original.path)
    for name, info in loaded.items():
        if name in source.loaded:
            assert Checkpoint.open(tmp_path / "out").read_bytes(info) == source.read_bytes(
                source.loaded[name]
            )


def test_small_shards_are_rewritten_and_empty_ones_go(quantized: Callable[..., Any], tmp_path: Path) -> None:
    with packaged(quantized("static").model, Packaging(lm_head_bits=8, text_only=True)) as model:
        model.save(str(tmp_path / "out"), max_shard_size="300KB")
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert len(checkpoint.on_disk) > 3
    assert all(header.tensors for header in checkpoint.headers.values())
    assert check(tmp_path / "out", vllm="0.32.0").findings == ()
    assert not list((tmp_path / "out").glob("*.new"))


def test_without_an_mtp_head_there_is_none_to_pack(quantized: Callable[..., Any], tmp_path: Path) -> None:
    with packaged(quantized("static").model, Packaging(mtp_bits=4), keep_mtp=False) as model:
        model.save(str(tmp_path / "out"))
    assert check(tmp_path / "out", vllm="0.32.0", mtp=False).findings == ()
    assert not any(name.startswith("mtp.") for name in Checkpoint.open(tmp_path / "out").loaded)


def test_a_tied_output_head_is_refused_before_the_run(
    quantized: Callable[..., Any], original: DemoCheckpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "tied"
    folder.mkdir()
    config = json.loads((original.path / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    model = quantized("static").model
    before = model.model_local_path
    with packaged(model, Packaging(lm_head_bits=8)):
        model.model_local_path = str(folder)
        try:
            with pytest.raises(HybridError, match="tied to the embeddings"):
                model.quantize([])
        finally:
            model.model_local_path = before
