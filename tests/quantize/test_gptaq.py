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
from gptq_hybrid.quantize import QuantizeRequest, plan, plan_run, quantize
from gptq_hybrid.quantize.plan import MemoryPlan, RunSizes
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.writer import judge

GPTAQ = load_recipe("static-mse-gptaq")


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


def test_batches_are_refused_by_the_plan(original: DemoCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(HybridError, match="padded batches"):
        plan_run(QuantizeRequest(original.path, tmp_path / "out", recipe=GPTAQ, batch_size=2))
    plan_run(QuantizeRequest(original.path, tmp_path / "out", batch_size=2))


def test_what_it_needs_is_among_the_facts_of_the_plan(original: DemoCheckpoint, tmp_path: Path) -> None:
    facts = plan_run(QuantizeRequest(original.path, tmp_path / "out", recipe=GPTAQ)).facts
    assert any(value.startswith("GPTAQ: at most ") and "main memory" in value for _, value in facts)
    plain = plan_run(QuantizeRequest(original.path, tmp_path / "out")).facts
    assert not any("GPTAQ" in value for _, value in plain)


def sizes(native: int, hidden: int = 0, projection: int = 0) -> RunSizes:
    """Sizes of a run of 1,024 tokens, of which only these matter here."""
    return RunSizes(
        tokens=1024, layers=4, output=0, peak=0, packed=0, dense=0, working=0,
        hidden=hidden, projection=projection, native=native,
    )  # fmt: skip


CPU = MemoryPlan(None, 0, None, hidden_on_cpu=False)
# So large that what is kept of a layer between passes stays there.
GPU = MemoryPlan("some card", 1 << 40, None, hidden_on_cpu=False)


@pytest.mark.parametrize(("free", "fits"), [(24 << 30, True), (23 << 30, False)])
def test_a_bound_is_refused_only_where_a_quarter_of_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    monkeypatch.setattr(plan, "free_memory", lambda: free)
    if fits:
        plan._refuse_native(sizes(96 << 30), GPU, bound=True)
    with pytest.raises(HybridError, match=r"96\.0 GiB") as caught:
        plan._refuse_native(sizes(96 << 30), GPU, bound=fits is False)
    assert "--samples or --max-length" in str(caught.value)


def test_hidden_states_in_main_memory_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "free_memory", lambda: 100 << 30)
    plan._refuse_native(sizes(96 << 30, hidden=12 << 30), GPU, bound=False)
    with pytest.raises(
        HybridError, match=r"96\.0 GiB .* and 20\.0 GiB of hidden states and the like, and 100\.0 GiB"
    ) as caught:
        plan._refuse_native(sizes(96 << 30, hidden=12 << 30, projection=8 << 30), CPU, bound=False)
    assert "2 times fewer tokens" in str(caught.value)


def test_inputs_on_a_gpu_are_held_against_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "free_memory", lambda: 0)
    there = MemoryPlan("some card", 80 << 30, 80 << 30, hidden_on_cpu=True)
    plan._refuse_native(sizes(80 << 30, hidden=12 << 30), there, bound=False)
    with pytest.raises(HybridError, match=r"80\.0 GiB of GPU memory is there") as caught:
        plan._refuse_native(sizes(81 << 30), there, bound=False)
    assert '`device = "cpu"` keeps them in main memory' in str(caught.value)


def test_too_little_memory_for_the_rows_drawn_ends_the_run_before_the_model_is_loaded(
    original: DemoCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = QuantizeRequest(
        original.path, tmp_path / "out", recipe=GPTAQ, calibration="demo", samples=2, max_length=64
    )
    bound = plan_run(request).sizes.native
    monkeypatch.setattr(plan, "free_memory", lambda: bound // 2)
    planned = plan_run(request)
    with pytest.raises(HybridError, match="GPTAQ keeps") as caught:
        quantize(planned)
    assert "at most" not in str(caught.value)
    assert not (tmp_path / "out").exists()
