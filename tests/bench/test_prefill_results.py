"""bench/prefill: what follows from its results. A wrong figure here is a wrong figure on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import dummy
from bench.engine import turns
from bench.prefill import linear
from bench.prefill.report import ENGINE, GRAPHS, gemms_table, targets_table
from bench.prefill.results import (
    LAYERS,
    MODULES,
    by_kind,
    by_size,
    cases,
    kv_given_up,
    lengths,
    passes,
    stock_column,
    ttft_ratio,
    worst,
)
from bench.results import Json, load
from gptq_hybrid.checkpoint import layout_for

H100 = {"device": "NVIDIA H100", "vllm": "0.26.0", "torch": "2.11.0", "triton": "3.6.0", "driver": "580.1"}
H200 = {**H100, "device": "NVIDIA H200"}


def cells(table: str) -> list[list[str]]:
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def run(ttft: dict[str, list[float]], kernels: dict[str, float], kv: int, place: Json = H100) -> Json:
    return {
        "complete": True,
        "environment": place,
        "kv_cache": {"bytes": kv, "tokens": 250_000},
        "ttft_ms": {way: {"8192": times} for way, times in ttft.items()},
        "ttft_gpu_ms": {"8192": {way: {"total": ms, "kernels": {}} for way, ms in kernels.items()}},
        "step_ms": {"1": [4.0]},
        "step_gpu_ms": {"1": {"total": 2.0}},
    }


@pytest.fixture
def result() -> Json:
    plugin = run({"stock": [350.0, 340.0, 360.0], "fp8": [140.0]}, {"stock": 345.0, "fp8": 150.0}, 40 << 30)
    plugin["step_ms"] = {"1": [4.4]}
    runs = {
        "plugin": plugin,
        "stock": run({"stock": [350.0]}, {"stock": 350.0}, (40 << 30) + (166 << 20)),
        "machete": run({"machete": [210.0]}, {"machete": 200.0}, 40 << 30, H200),
        "bf16": run({"bf16": [210.0]}, {"bf16": 200.0}, 8 << 30),
    }
    return {"settings": {"layers": 64, "tiny": False}, "runs": runs}


def test_cases_name_the_lengths_of_their_prompts() -> None:
    assert lengths("2048") == (2048,)
    assert lengths("4x512") == (512,) * 4
    assert lengths("173+390") == (173, 390)
    assert by_size(["4x512", "8192", "173+390", "512"]) == ["512", "8192", "173+390", "4x512"]


def test_ratios_are_of_medians_and_only_of_runs_on_the_same_card(result: Json) -> None:
    assert ttft_ratio(result, ("plugin", "fp8"), ("plugin", "stock"), "8192") == pytest.approx(0.4)
    assert ttft_ratio(result, ("plugin", "fp8"), ("bf16", "bf16"), "8192") == pytest.approx(2 / 3)
    assert ttft_ratio(result, ("plugin", "fp8"), ("machete", "machete"), "8192") is None
    assert ttft_ratio(result, ("plugin", "exact"), ("stock", "stock"), "8192") is None


def test_bytes_given_up_are_those_that_the_other_process_has_more(result: Json) -> None:
    assert kv_given_up(result, "plugin") == 166 << 20
    assert kv_given_up(result, "stock") is None
    result["runs"]["stock"]["environment"] = H200
    assert kv_given_up(result, "plugin") is None


def test_targets_are_met_at_most_and_said_to_be_nothing_where_there_is_no_figure(result: Json) -> None:
    found = {tuple(row[:2]): row[2:] for row in cells(targets_table(result))[2:]}
    assert found["first token, fp8 / stock", "8192"] == ["0.40", "0.400, met", "0.429"]
    assert found["first token, fp8 / bf16", "8192"] == ["0.70", "0.667, met", "0.750"]
    assert found["first token, exact / stock", "8192"] == ["0.60", "", ""]
    assert found["first token, fp8 / machete", "8192"] == ["0.65", "", ""]
    assert found["decode step, plugin / stock, batch 1", ""] == ["1.01", "1.100", "1.000, met"]


def test_without_a_process_that_has_no_plugin_its_own_stock_way_is_what_counts(result: Json) -> None:
    del result["runs"]["stock"]
    assert stock_column(result) == ("plugin", "stock")
    found = {tuple(row[:2]): row[2:] for row in cells(targets_table(result))[2:]}
    assert found["first token, fp8 / stock, in turns", "8192"] == ["0.40", "0.400, met", "0.435"]
    assert not [row for row in found if row[0].startswith("decode")]


def test_with_graphs_a_way_is_held_against_the_process_without_it() -> None:
    runs = {name: run({name: [ms]}, {name: ms}, 1) for name, ms in (("stock", 40.0), ("fp8", 20.0))}
    runs["fp8"]["step_gpu_ms"]["1"]["total"] = 2.1
    found = cells(targets_table({"settings": {"layers": 16, "tiny": False}, "runs": runs}))[2:]
    assert found == [
        ["first token, fp8 / stock", "8192", "0.40", "0.500", "0.500"],
        ["decode step, fp8 / stock, batch 1", "", "1.01", "1.000, met", "1.050"],
    ]


def test_problems_and_runs_that_were_cut_off_are_said_below_a_table(result: Json) -> None:
    result["runs"]["stock"] |= {"problems": ["the logits are not finite"], "complete": False}
    caption = targets_table(result).splitlines()[-1]
    assert "machete: NVIDIA H200" in caption
    assert "PROBLEM in stock: the logits are not finite" in caption
    assert "cut off before the end: stock" in caption


def test_kernels_are_counted_once_by_what_they_do_and_the_rest_are_others() -> None:
    gemm = "void cutlass::device_kernel<vllm::cutlass_3x_gemm_sm90_fp8<cutlass::float_e4m3_t> >(Params)"
    copy = "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda(TensorIterator&)>"
    kernels = {
        gemm: 40.0,
        "void marlin::Marlin<1l, 256, false>(int4 const*)": 20.0,
        "nvjet_sm90_tst_512x8_64x3_2x1_v_bz_TNT": 0.5,
        copy: 11.0,
        "_expand": 4.0,
        "void vllm::dynamic_per_token_scaled_fp8_quant_kernel_strided<c10::BFloat16>(float)": 2.0,
        "_quantize_rows": 3.0,
        "kernel_unified_attention": 60.0,
        "triton_poi_fused_marlin_gemm_mul_silu_slice_4": 2.0,
    }
    assert by_kind({"total": 150.0, "kernels": kernels}) == {
        "GEMMs": 60.5,
        "unpacking": 4.0,
        "activations to e4m3": 5.0,
        "copies of results": 11.0,
        "attention": 60.0,
        "all others": pytest.approx(9.5),
    }
    # Not named, but part of the total.
    assert by_kind({"total": 7.0, "kernels": {}})["all others"] == 7.0


def shape(module: str) -> dict[str, Any]:
    k, n, _ = MODULES[module]
    times = {"stock": 100.0, "exact": 60.0, "plugin": 60.0, "cublas": 50.0}
    rows = [{"m": m, "times": {name: {"us": us} for name, us in times.items()}} for m in (16, 1024)]
    return {
        "module": module,
        "shape": f"marlin {k}x{n} w4 g128 bfloat16",
        "starts": {"exact": 512, "fp8": None},
        "rows": rows,
    }


@pytest.fixture
def of_linears() -> Json:
    return {"shapes": [shape(name) for name in MODULES]}


def test_modules_are_the_27bs_fused_linears() -> None:
    layout = layout_for(dummy.config(64, desc_act=False))
    total = sum(linear.in_features * linear.out_features for linear in layout.quantized)
    assert sum(k * n * count for k, n, count in MODULES.values()) == total


def test_a_pass_is_the_sum_over_its_layers_and_left_out_where_a_shape_is_missing(of_linears: Json) -> None:
    found = passes(of_linears)["marlin"][1024]
    assert found["stock"] == pytest.approx(sum(LAYERS.values()) * 100 / 1e3)
    assert found["plugin"] == pytest.approx(sum(LAYERS.values()) * 60 / 1e3)
    assert "plugin_fp8" not in found
    del of_linears["shapes"][0]
    assert passes(of_linears) == {}


def test_the_worst_is_over_all_shapes_and_numbers_of_tokens(of_linears: Json) -> None:
    row = of_linears["shapes"][2]["rows"][0]
    row["times"] = {**row["times"], "plugin": {"us": 130.0}}
    ((ratio, where),) = worst(of_linears)
    assert ratio == pytest.approx(1.3)
    assert of_linears["shapes"][2]["shape"] in where
    assert "M = 16" in where


def test_the_worst_elsewhere_leaves_out_what_stock_serves(of_linears: Json) -> None:
    below, above = of_linears["shapes"][2]["rows"]
    below["times"] = {**below["times"], "plugin": {"us": 130.0}, "plugin_fp8": {"us": 140.0}}
    above["times"] = {**above["times"], "plugin": {"us": 70.0}, "plugin_fp8": {"us": 80.0}}
    (exact, where), (fp8, _) = worst(of_linears, elsewhere=True)
    assert (exact, fp8) == (pytest.approx(0.7), pytest.approx(0.8))
    assert "M = 1024" in where
    of_linears["shapes"][2]["starts"] = {"exact": None, "fp8": 16}
    (exact, _), (fp8, where) = worst(of_linears, elsewhere=True)
    assert (exact, fp8) == (pytest.approx(0.6), pytest.approx(1.4))
    assert "M = 16" in where


def test_a_relative_error_is_of_root_mean_squares() -> None:
    torch = pytest.importorskip("torch")
    expected = torch.tensor([3.0, -4.0])
    assert linear.relative_rms(expected * 1.5, expected) == pytest.approx(0.5)


# What is committed.


RUNS = {ENGINE: {"plugin", "stock", "machete", "bf16"}, GRAPHS: {"stock", "exact", "fp8"}}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_committed_runs_are_whole_and_had_no_problems(path: Path) -> None:
    result = load(path)
    assert result is not None
    runs, whole = result["runs"], set(cases(result))
    assert set(runs) == RUNS[path]
    assert all(run["complete"] and "problems" not in run for run in runs.values())
    assert all(set(by) == whole for run in runs.values() for by in run["ttft_ms"].values())


def test_the_gemms_table_adds_up_what_start_up_measured() -> None:
    result = load(ENGINE)
    assert result is not None
    found = {row[0]: row[1:] for row in cells(gemms_table(result))[2:]}
    shapes = result["runs"]["plugin"]["plugin"]["profile"]["shapes"]
    layers_by_n = {14336: 16, 16384: 48, 5120: 64, 34816: 64}
    stock = sum(
        layers_by_n[int(key.split()[1].split("x")[1])] * entry["times_us"]["stock"]["1024"]
        for key, entry in shapes.items()
    )
    assert float(found["1024"][0]) == pytest.approx(stock / 1e3, abs=0.06)


def test_variants_take_turns() -> None:
    assert ["".join(order) for order in turns(tuple("abc"), 4)] == ["abc", "bca", "cab", "abc"]
    assert linear.spread([1.0, 2.0, 9.0]) == {"us": 2.0, "deviation_us": 1.0}
