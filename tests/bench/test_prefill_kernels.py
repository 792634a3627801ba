"""bench/prefill/engine: kernels of a first token by what they do, and targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.prefill import engine_gemms, engine_kernels, engine_tables, engine_targets
from bench.prefill.engine_results import cases
from bench.prefill.report import ENGINE, ENGINE_H100, GRAPHS, TRITON
from bench.results import Json, load

PLACE = {"device": "NVIDIA H200", "vllm": "0.26.0", "torch": "2.11.0"}
GEMM = "void cutlass::device_kernel<vllm::cutlass_3x_gemm_sm90_fp8<cutlass::float_e4m3_t> >(Params)"
COPY = "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda(TensorIteratorBase&)>"
FP8 = {
    GEMM: 40.0,
    GEMM.replace("float_e4m3_t", "half_t"): 20.0,
    "nvjet_sm90_tst_512x8_64x3_2x1_v_bz_TNT": 0.5,
    COPY: 11.0,
    "_expand": 4.0,
    "void vllm::dynamic_per_token_scaled_fp8_quant_kernel_strided<c10::BFloat16>(float)": 2.0,
    "_quantize_rows": 3.0,
    "kernel_unified_attention": 60.0,
    "triton_poi_fused_marlin_gemm_mul_silu_slice_4": 2.0,
    "chunk_fwd_kernel_o": 3.0,
}
MARLIN = {"void marlin::Marlin<1l, 256, false>(int4 const*)": 260.0, "kernel_unified_attention": 60.0}


def run(ways: dict[str, tuple[float, dict[str, float]]], ttft: dict[str, float]) -> Json:
    return {
        "complete": True,
        "environment": PLACE,
        "ttft_ms": {way: {"8192": [ms], "512": [1.0]} for way, ms in ttft.items()},
        "ttft_gpu_ms": {
            "8192": {way: {"total": total, "kernels": found} for way, (total, found) in ways.items()}
        },
        "step_ms": {"1": [4.0]},
        "step_gpu_ms": {"1": {"total": 2.0}},
    }


@pytest.fixture
def result() -> Json:
    plugin = run({"stock": (345.0, MARLIN), "fp8": (150.0, FP8)}, {"stock": 350.0, "fp8": 140.0})
    plugin["step_ms"] = {"1": [4.4]}
    stock = run({"stock": (350.0, MARLIN)}, {"stock": 350.0})
    bf16 = run({"bf16": (200.0, {"nvjet_sm90": 120.0})}, {"bf16": 210.0})
    return {
        "settings": {"layers": 16, "tiny": False},
        "runs": {"plugin": plugin, "stock": stock, "bf16": bf16},
    }


def cells(table: str) -> list[list[str]]:
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_kernels_are_counted_once_by_what_they_do_and_the_rest_are_others() -> None:
    found = engine_kernels.by_kind({"total": 150.0, "kernels": FP8})
    assert found == {
        "GEMMs": 60.5,
        "unpacking": 4.0,
        "activations to e4m3": 5.0,
        "copies of results": 11.0,
        "attention": 60.0,
        "all others": pytest.approx(9.5),
    }
    # Not named, but part of the total.
    assert engine_kernels.by_kind({"total": 7.0, "kernels": {}})["all others"] == 7.0


def test_table_of_kinds_holds_totals_against_vllm_without_the_plugin(result: Json) -> None:
    found = cells(engine_kernels.kinds_table(result))
    assert found[0] == ["tokens", "kernels", "plugin: stock", "plugin: fp8", "stock", "bf16"]
    by_kind = {row[1]: row[2:] for row in found[2:]}
    assert by_kind["GEMMs"] == ["260.0", "60.5", "260.0", "120.0"]
    assert by_kind["copies of results"] == ["", "11.0", "", ""]
    assert by_kind["all"] == ["345.0", "150.0", "350.0", "200.0"]
    assert by_kind["over vLLM's without the plugin"] == ["0.986", "0.429", "", ""]
    assert {row[0] for row in found[2:]} == {"8192"}


def test_without_a_process_that_has_no_plugin_its_own_stock_way_is_what_counts(result: Json) -> None:
    del result["runs"]["stock"]
    by_kind = {row[1]: row[2:] for row in cells(engine_kernels.kinds_table(result))[2:]}
    assert by_kind["over vLLM's, in turns"] == ["", "0.435", ""]
    found = {tuple(row[:2]): row[2:] for row in cells(engine_targets.targets_table(result))[2:]}
    assert found["first token, fp8 / stock, in turns", "8192"] == ["0.40", "0.400, met", "0.435"]
    assert found["first token, fp8 / bf16", "8192"] == ["0.70", "0.667, met", "0.750"]
    assert ("decode step, batch 1", "") not in found


def test_kernels_of_another_card_are_not_compared(result: Json) -> None:
    result["runs"]["stock"]["environment"] = {**PLACE, "device": "NVIDIA H100"}
    found = {row[1]: row[2:] for row in cells(engine_kernels.kinds_table(result))[2:]}
    assert found["over vLLM's without the plugin"] == [""] * 4
    assert cells(engine_targets.targets_table(result))[3][3:] == ["", ""]


def test_a_report_without_kernels_has_no_tables_of_them(result: Json) -> None:
    for each in result["runs"].values():
        each["kv_cache"], each["seconds"] = (
            {"bytes": 1 << 30, "tokens": 10},
            {"start": 1.0, "process_weights": 1.0},
        )
        each.pop("step_gpu_ms")
        each["ttft_gpu_ms"] = {"8192": {}}
    result["runs"].pop("plugin")
    result["settings"]["memory"] = 0.85
    assert not engine_kernels.has_kernels(result)
    assert "kernels do" not in engine_tables.report(result)
    assert engine_kernels.kinds_table(result) == "Not taken yet."


def test_targets_are_met_at_most_and_said_to_be_nothing_where_there_is_no_figure(result: Json) -> None:
    found = {tuple(row[:2]): row[2:] for row in cells(engine_targets.targets_table(result))[2:]}
    assert found["first token, fp8 / stock", "8192"] == ["0.40", "0.400, met", "0.429"]
    assert found["first token, fp8 / bf16", "8192"] == ["0.70", "0.667, met", "0.750"]
    assert found["first token, exact / stock", "8192"] == ["0.60", "", ""]
    assert found["first token, fp8 / machete", "8192"] == ["0.65", "", ""]
    assert found["decode step, batch 1", ""] == ["1.01", "1.100", "1.000, met"]


# What is committed.


def committed(path: Path) -> Json:
    found = load(path)
    assert found is not None
    return found


RUNS = {
    ENGINE: {"plugin", "machete", "bf16"},
    TRITON: {"plugin", "stock", "machete", "bf16"},
    ENGINE_H100: {"plugin", "stock", "bf16"},
    GRAPHS: {"stock", "exact", "fp8"},
}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_committed_runs_are_whole_and_had_no_problems(path: Path) -> None:
    result = committed(path)
    runs, whole = result["runs"], set(cases(result))
    assert RUNS[path] <= set(runs)
    assert all(run["complete"] and "problems" not in run for run in runs.values())
    assert all(set(by) == whole for run in runs.values() for by in run["ttft_ms"].values())


def test_the_gemms_table_adds_up_what_start_up_measured() -> None:
    result = committed(ENGINE)
    found = {row[0]: row[1:] for row in cells(engine_gemms.gemms_table(result))[2:]}
    shapes = result["runs"]["plugin"]["plugin"]["profile"]["shapes"]
    assert list(found) == list(next(iter(shapes.values()))["times_us"]["stock"])
    layers = {14336: 16, 16384: 48, 5120: 64, 34816: 64}
    stock = sum(
        layers[int(key.split()[1].split("x")[1])] * entry["times_us"]["stock"]["1024"]
        for key, entry in shapes.items()
    )
    assert float(found["1024"][0]) == pytest.approx(stock / 1e3, abs=0.06)
    assert all(
        float(row[-1]) == pytest.approx(float(row[3]) / float(row[2]), abs=0.01) for row in found.values()
    )


def test_with_graphs_a_way_is_held_against_the_process_without_it() -> None:
    ways = {name: run({name: (total, {})}, {name: total}) for name, total in (("stock", 40.0), ("fp8", 20.0))}
    for found in ways.values():
        found["ttft_ms"] = {way: {"1024": by["8192"]} for way, by in found["ttft_ms"].items()}
        found["ttft_gpu_ms"] = {"1024": found["ttft_gpu_ms"]["8192"]}
    ways["fp8"]["step_gpu_ms"]["1"]["total"] = 2.1
    table = engine_targets.graphs_table({"settings": {"layers": 16, "tiny": False}, "runs": ways})
    assert "| first token, fp8 / stock | 1024 | 0.52 | 0.500, met | 0.500, met |" in table
    assert "| decode step, fp8 / stock, batch 1 |  | 1.01 | 1.000, met | 1.050 |" in table
    assert "exact" not in table
