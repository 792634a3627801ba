"""What `.save()` writes: head verbatim and indexed, honest configs, the source's own small files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, Checkpoint, layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check_mtp, check_quantized, find_mtp
from gptq_hybrid.losses import find_flags, read_log
from gptq_hybrid.writer import CheckpointSpec, write_checkpoint
from gptq_hybrid.writer._configs import refuse_machine_paths

RECIPES = ["static", "reference"]


@pytest.fixture(params=RECIPES)
def written(request: pytest.FixtureRequest, quantized: Callable[..., Any]) -> Path:
    path: Path = quantized(request.param).path
    return path


def test_the_head_lies_in_its_own_indexed_file_bit_for_bit(written: Path, original: DemoCheckpoint) -> None:
    source, target = Checkpoint.open(original.path), Checkpoint.open(written)
    assert target.index is not None
    for spec in layout_for(source.config).mtp:
        assert target.index[spec.name] == MTP_FILE
        copy, first = target.loaded[spec.name], source.loaded[spec.name]
        assert (copy.file, copy.dtype, copy.shape) == (MTP_FILE, "BF16", spec.shape)
        assert target.read_bytes(copy) == source.read_bytes(first)


def test_the_index_names_every_tensor_once_and_nothing_else(written: Path) -> None:
    checkpoint = Checkpoint.open(written)
    assert checkpoint.index == {name: info.file for name, info in checkpoint.loaded.items()}
    assert checkpoint.stray == {}
    total = json.loads((written / INDEX_NAME).read_text())["metadata"]["total_size"]
    assert total == sum(info.nbytes for info in checkpoint.loaded.values())


def test_everything_left_in_bf16_is_the_source_bit_for_bit(written: Path, original: DemoCheckpoint) -> None:
    source, target = Checkpoint.open(original.path), Checkpoint.open(written)
    layout = layout_for(source.config)
    for spec in (*layout.plain, *layout.vision):
        assert target.read_bytes(target.loaded[spec.name]) == source.read_bytes(source.loaded[spec.name]), (
            spec.name
        )


def test_config_is_the_source_plus_the_quantization(written: Path, original: DemoCheckpoint) -> None:
    config = json.loads((written / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((original.path / "config.json").read_text())
    assert quantization == json.loads((written / "quantize_config.json").read_text())
    assert (quantization["bits"], quantization["group_size"], quantization["sym"]) == (4, 128, True)
    assert quantization["dynamic"] == {r"-:^mtp\.": {}}
    assert "offload_to_disk_path" not in quantization["meta"]


def test_the_flag_follows_g_idx(quantized: Callable[..., Any]) -> None:
    flags = {
        recipe: json.loads((quantized(recipe).path / "config.json").read_text())["quantization_config"][
            "desc_act"
        ]
        for recipe in RECIPES
    }
    assert flags == {"static": False, "reference": True}


def test_tokenizer_processor_and_template_are_the_sources_own(
    written: Path, original: DemoCheckpoint
) -> None:
    ours = {p.name for p in written.iterdir()} - {"quantize_config.json", "quant_log.csv", "config.json"}
    ours = {name for name in ours if "safetensors" not in name}
    theirs = {p.name for p in original.path.iterdir() if "safetensors" not in p.name} - {"config.json"}
    assert ours == theirs
    for name in ours:
        assert (written / name).read_bytes() == (original.path / name).read_bytes()


def test_quant_log_has_a_relative_error_for_every_module(written: Path) -> None:
    rows = list(csv.DictReader((written / "quant_log.csv").open()))
    assert len(rows) == len(layout_for(Checkpoint.open(written).config).quantized)
    assert {row["outcome"] for row in rows} == {"gptq"}
    assert all(0 < float(row["relative_error"]) < 0.05 for row in rows)
    assert [row["layer"] for row in rows] == sorted(row["layer"] for row in rows)
    log = read_log(written)
    assert log.lacking == ()
    assert not any(find_flags(log.modules).values())
    assert {(module.damp, module.damp_asked, module.floor) for module in log.modules} == {(0.01, 0.01, 0.0)}


def test_saving_over_a_checkpoint_is_refused_and_changes_nothing(quantized: Callable[..., Any]) -> None:
    done = quantized("static")
    before = {p.name: p.stat().st_mtime_ns for p in done.path.iterdir()}
    with pytest.raises(FileExistsError):
        done.model.save(str(done.path))
    assert {p.name: p.stat().st_mtime_ns for p in done.path.iterdir()} == before


def test_saving_twice_gives_the_same_bytes(quantized: Callable[..., Any], tmp_path: Path) -> None:
    done = quantized("static")
    done.model.save(str(tmp_path / "again"))
    for path in done.path.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("mtp", ["inline", "separate", "unindexed"])
def test_the_head_is_found_wherever_the_source_keeps_it(
    build: Callable[..., DemoCheckpoint], mtp: str
) -> None:
    source = build(mtp=mtp)
    assert len(find_mtp(source.path)) == 15


def test_a_source_without_a_head_is_an_error_that_says_how_to_go_on(
    build: Callable[..., DemoCheckpoint],
) -> None:
    with pytest.raises(HybridError, match="--no-mtp"):
        find_mtp(build(mtp="none").path)


def test_without_mtp_the_config_promises_none(
    quantized: Callable[..., Any], original: DemoCheckpoint, tmp_path: Path
) -> None:
    model = quantized("static").model
    model.keep_mtp = False
    try:
        model.save(str(tmp_path / "bare"))
    finally:
        model.keep_mtp = True
    checkpoint = Checkpoint.open(tmp_path / "bare")
    assert not any(name.startswith("mtp.") for name in checkpoint.loaded)
    assert checkpoint.text_config["mtp_num_hidden_layers"] == 0


def test_a_faulty_result_never_gets_its_name(
    quantized: Callable[..., Any], original: DemoCheckpoint, tmp_path: Path
) -> None:
    """A permuted g_idx in one shard of a fused module must not be published."""
    import shutil

    from safetensors.torch import load_file, save_file

    def save_shards(folder: Path) -> None:
        for name in ("model.safetensors", "quantize_config.json", "quant_log.csv"):
            shutil.copyfile(quantized("reference").path / name, folder / name)
        tensors = load_file(folder / "model.safetensors")
        name = "model.language_model.layers.3.self_attn.k_proj.g_idx"
        tensors[name] = tensors[name].flip(0).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(HybridError, match="g-idx-fused"):
        write_checkpoint(CheckpointSpec(Checkpoint.open(original.path)), tmp_path / "out", save_shards)
    assert list(tmp_path.iterdir()) == []


def test_a_path_of_the_machine_is_found(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text(json.dumps({"meta": {"offload": str(tmp_path)}}))
    with pytest.raises(HybridError, match=r"quantize_config.json names"):
        refuse_machine_paths(tmp_path, [tmp_path])


def test_a_text_only_source_with_an_unindexed_head_goes_all_the_way(
    build: Callable[..., DemoCheckpoint], calibration: list[dict[str, list[int]]], tmp_path: Path
) -> None:
    import gptq_hybrid
    from gptq_hybrid.recipes import load_recipe

    gptq_hybrid.register()
    from gptqmodel import GPTQModel

    source = build(text_only=True, mtp="unindexed")
    model = GPTQModel.load(str(source.path), load_recipe("group-aware").quantize_config())
    model.quantize([dict(row) for row in calibration[:8]])
    model.save(str(tmp_path / "out"))
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert check_mtp(checkpoint) + check_quantized(checkpoint) == []
    assert checkpoint.config["architectures"] == ["Qwen3_5ForCausalLM"]
    stray = Checkpoint.open(source.path).stray
    for name, info in stray.items():
        assert checkpoint.read_bytes(checkpoint.loaded[name]) == Checkpoint.open(source.path).read_bytes(info)
