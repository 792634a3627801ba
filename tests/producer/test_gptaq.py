"""`static-mse-gptaq`: an ordinary checkpoint comes out, and what does not fit is refused before the run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.checkpoint.g_idx import is_natural
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import inspect
from gptq_hybrid.quantize import QuantizeRequest, preflight, quantize
from gptq_hybrid.quantize import _native as native
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.recipes.sizes import working_bytes
from gptq_hybrid.writer import judge
from tests.checkpoint.test_layout import CONFIG_27B

GPTAQ = load_recipe("static-mse-gptaq")
LAYOUT = layout_for(CONFIG_27B)


def test_an_ordinary_checkpoint_is_written_and_every_module_recorded(
    quantized: Callable[..., Any], calibration: list[dict[str, list[int]]]
) -> None:
    done = quantized("static-mse-gptaq")
    checkpoint = Checkpoint.open(done.path)
    assert inspect(checkpoint).findings == ()
    config = checkpoint.quantization_config
    assert config is not None
    assert config == json.loads((done.path / "quantize_config.json").read_text())
    assert (config["quant_method"], config["desc_act"]) == ("gptq", False)
    assert config["meta"]["gptaq"] == {"alpha": 0.25}
    assert "gptaq" not in config
    orders = [info for name, info in checkpoint.loaded.items() if name.endswith(".g_idx")]
    assert len(orders) == len(layout_for(checkpoint.config).quantized)
    assert all(is_natural(checkpoint.read_bytes(info), info.shape[0], 128) for info in orders)
    records = done.model.module_records
    assert len(records) == len(orders)
    assert {record.outcome for record in records.values()} == {"gptaq"}
    assert all(0 < record.relative_error < 0.2 for record in records.values())
    assert judge(records.values()).ok
    with (done.path / "quant_log.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len(orders)
    assert {row["samples"] for row in rows} == {str(sum(len(row["input_ids"]) for row in calibration))}
    assert all(row["outcome"] == "gptaq" and float(row["relative_error"]) > 0 for row in rows)


def test_gptqmodels_own_api_is_refused_batches_before_the_run(original: DemoCheckpoint) -> None:
    import gptq_hybrid

    gptq_hybrid.register()
    from gptqmodel import GPTQModel

    model = GPTQModel.load(str(original.path), GPTAQ.quantize_config())
    with pytest.raises(HybridError, match="padded batches"):
        model.quantize([{"input_ids": [1] * 20}], batch_size=4)


def test_batches_are_refused_by_the_preflight(original: DemoCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(HybridError, match="padded batches"):
        preflight(QuantizeRequest(original.path, tmp_path / "out", recipe=GPTAQ, batch_size=2))
    preflight(QuantizeRequest(original.path, tmp_path / "out", batch_size=2))


def test_native_inputs_at_27b_are_those_of_a_full_attention_layer() -> None:
    # q, k, v, gate and up: 5,120 each; o_proj 6,144; down_proj 17,408. Gated DeltaNet has an input of 5,120 less.
    assert native.native_width(LAYOUT, GPTAQ.settings) == 5 * 5120 + 6144 + 17408
    assert round(native.native_bytes(LAYOUT, GPTAQ.settings, 512 * 2048) / 1e9) == 103
    assert native.native_bytes(LAYOUT, load_recipe("static-mse").settings, 512 * 2048) == 0
    spared = {**GPTAQ.settings, "dynamic": {r"-:.*\.down_proj$": {}}}
    assert native.native_width(LAYOUT, spared) == 5 * 5120 + 6144
    assert working_bytes(LAYOUT, gptaq=True) > working_bytes(LAYOUT)


def test_what_it_needs_is_said_by_the_preflight(original: DemoCheckpoint, tmp_path: Path) -> None:
    said = [
        value for _, value in preflight(QuantizeRequest(original.path, tmp_path / "out", recipe=GPTAQ)).facts
    ]
    assert any(value.startswith("GPTAQ: at most ") and "main memory" in value for value in said)
    plain = preflight(QuantizeRequest(original.path, tmp_path / "out")).facts
    assert not any("GPTAQ" in value for _, value in plain)


@pytest.mark.parametrize(("free", "fits"), [(24 << 30, True), (23 << 30, False)])
def test_a_bound_is_refused_only_where_a_quarter_of_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    monkeypatch.setattr(native, "free_memory", lambda: free)
    needed = native.native_bytes(LAYOUT, GPTAQ.settings, 512 * 2048)
    if fits:
        native.refuse_native(needed, bound=True)
    with pytest.raises(HybridError, match=r"96\.0 GiB") as caught:
        native.refuse_native(needed, bound=fits is False)
    assert "--samples or --max-length" in str(caught.value)


def test_hidden_states_in_main_memory_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "free_memory", lambda: 100 << 30)
    native.refuse_native(96 << 30, bound=False)
    with pytest.raises(
        HybridError, match=r"96\.0 GiB .* and 20\.0 GiB of hidden states and the like, and 100\.0 GiB"
    ) as caught:
        native.refuse_native(96 << 30, bound=False, beside=20 << 30)
    assert "2 times fewer tokens" in str(caught.value)


def test_too_little_memory_for_the_rows_drawn_ends_the_run_before_the_model_is_loaded(
    original: DemoCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = QuantizeRequest(
        original.path, tmp_path / "out", recipe=GPTAQ, calibration="demo", samples=2, max_length=64
    )
    bound = native.native_bytes(layout_for(Checkpoint.open(original.path).config), GPTAQ.settings, 2 * 64)
    monkeypatch.setattr(native, "free_memory", lambda: bound // 2)
    preflight(request)
    with pytest.raises(HybridError, match="GPTAQ keeps") as caught:
        quantize(request)
    assert "at most" not in str(caught.value)
    assert not (tmp_path / "out").exists()
