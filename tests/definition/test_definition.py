"""gptqmodel's ordinary API uses our definition, whenever and however often it is registered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.checkpoint.g_idx import is_natural
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_packages_loads_nothing_heavy() -> None:
    heavy = python(
        "import sys, gptq_hybrid, gptq_hybrid.checkpoint, vllm_qwen36_plugin, gptq_hybrid.plugin\n"
        "print([m for m in ('torch', 'numpy', 'transformers', 'gptqmodel', 'vllm', 'typer') if m in sys.modules])"
    )
    assert heavy.strip() == "[]"


def test_registering_is_idempotent_and_subclasses_what_is_mapped() -> None:
    import gptq_hybrid

    gptq_hybrid.register()
    from gptqmodel.models.auto import MODEL_MAP

    first = dict(MODEL_MAP)
    gptq_hybrid.register()
    assert first == MODEL_MAP
    for model_type, upstream in (("qwen3_5", "Qwen3_5QModel"), ("qwen3_5_text", "Qwen3_5TextQModel")):
        assert upstream in [base.__name__ for base in MODEL_MAP[model_type].__mro__[1:]]
        assert MODEL_MAP[model_type].shared_input_verified_model_types == {model_type}


def test_the_entry_point_for_upstream_is_the_same_function() -> None:
    import gptq_hybrid

    (entry_point,) = entry_points(group="gptqmodel.model_definitions", name="qwen36")
    assert entry_point.load() is gptq_hybrid.register


@pytest.mark.parametrize("settings", [{"rotation": "hadamard"}, {"method": "awq", "format": "gemm"}])
def test_what_the_hybrid_does_not_support_is_refused_at_load(
    original: DemoCheckpoint, settings: dict[str, str]
) -> None:
    import gptq_hybrid

    gptq_hybrid.register()
    from gptqmodel import GPTQModel, QuantizeConfig

    with pytest.raises(HybridError, match="supported"):
        GPTQModel.load(str(original.path), QuantizeConfig(bits=4, group_size=128, **settings))


def test_a_source_without_its_head_is_refused_before_the_run(
    build: Callable[..., DemoCheckpoint], calibration: list[dict[str, list[int]]]
) -> None:
    import gptq_hybrid

    gptq_hybrid.register()
    from gptqmodel import GPTQModel, QuantizeConfig

    model = GPTQModel.load(str(build(mtp="none").path), QuantizeConfig(bits=4, group_size=128))
    with pytest.raises(HybridError, match="MTP head cannot be kept"):
        model.quantize(calibration)


def tensors(path: Path) -> dict[str, bytes]:
    checkpoint = Checkpoint.open(path)
    return {name: checkpoint.read_bytes(info) for name, info in checkpoint.loaded.items()}


@pytest.fixture
def reproducible_matmul() -> Iterator[None]:
    """oneDNN picks BF16 kernels by row count, so its sums differ in the last bit between batch sizes."""
    import torch

    with torch.backends.mkldnn.flags(enabled=False):
        yield


def test_rows_of_unequal_length_give_the_same_bits_alone_and_in_batches(
    original: DemoCheckpoint,
    calibration: list[dict[str, list[int]]],
    tmp_path: Path,
    reproducible_matmul: None,
) -> None:
    """Upstream crashes on the batches, and its eager attention looks at the future on single rows."""
    import gptq_hybrid
    from gptq_hybrid.recipes import load_recipe

    gptq_hybrid.register()
    from gptqmodel import GPTQModel

    rows = [{key: ids[: 40 + 11 * i] for key, ids in row.items()} for i, row in enumerate(calibration[:8])]
    assert len({len(row["input_ids"]) for row in rows}) > 4
    for batch_size in (1, 4):
        config = load_recipe("static").quantize_config()
        model = GPTQModel.load(str(original.path), config, attn_implementation="eager")
        model.quantize([dict(row) for row in rows], batch_size=batch_size)
        model.save(str(tmp_path / str(batch_size)))
    alone, together = tensors(tmp_path / "1"), tensors(tmp_path / "4")
    assert alone.keys() == together.keys()
    assert [name for name in alone if alone[name] != together[name]] == []


def test_padding_is_not_counted_as_calibration(quantized: Callable[..., Any]) -> None:
    alone, together = quantized("static", 1).model.module_records, quantized("static", 4).model.module_records
    assert alone.keys() == together.keys()
    for name, record in alone.items():
        assert together[name].tokens == record.tokens
        assert together[name].relative_error == pytest.approx(record.relative_error, rel=0.05)


def test_act_order_permutes_and_static_groups_do_not(quantized: Callable[..., Any]) -> None:
    def natural(recipe: str) -> set[bool]:
        checkpoint = Checkpoint.open(quantized(recipe).path)
        return {
            is_natural(checkpoint.read_bytes(info), info.shape[0], 128)
            for name, info in checkpoint.loaded.items()
            if name.endswith(".g_idx") and info.shape[0] > 128
        }

    assert natural("reference") == {False}
    assert natural("static") == {True}


def test_fused_modules_end_with_one_g_idx(quantized: Callable[..., Any]) -> None:
    from gptq_hybrid.checkpoint import layout_for

    checkpoint = Checkpoint.open(quantized("reference").path)
    for fused in layout_for(checkpoint.config).fused:
        values = {checkpoint.read_bytes(checkpoint.loaded[f"{shard}.g_idx"]) for shard in fused.shards}
        assert len(values) == 1, fused.name


def test_a_gptqmodel_that_moved_is_an_error_that_names_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    import gptq_hybrid
    from gptq_hybrid.upstream import IncompatibleError

    gptq_hybrid.register()
    from gptqmodel.models import auto

    monkeypatch.setattr(auto, "MODEL_MAP", {})
    with pytest.raises(IncompatibleError, match="qwen3_5"):
        gptq_hybrid.register()
    monkeypatch.delattr(auto, "MODEL_MAP")
    with pytest.raises(IncompatibleError, match="MODEL_MAP"):
        gptq_hybrid.register()
