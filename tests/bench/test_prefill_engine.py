"""bench/prefill/engine: what follows from its results, and its tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.prefill import engine_tables
from bench.prefill.engine_results import (
    by_size,
    digest,
    first_differences,
    kv_given_up,
    lengths,
    ttft_ratio,
)
from bench.results import save
from vllm_qwen36_plugin.prefill.shape import Shape

H100 = {"device": "NVIDIA H100", "vllm": "0.26.0", "torch": "2.11.0", "triton": "3.6.0", "driver": "580.1"}
H200 = {**H100, "device": "NVIDIA H200"}
SETTINGS = {"layers": 64, "tiny": False, "memory": 0.85}
WIDE = Shape("marlin", 5120, 34816, 4, 128, "bfloat16")
SMALL = Shape("marlin", 6144, 5120, 4, 128, "bfloat16")


def run(ttft: dict[str, dict[str, list[float]]], kv: int, environment: dict[str, str]) -> dict[str, Any]:
    return {
        "complete": True,
        "environment": environment,
        "seconds": {"start": 201.4, "process_weights": 20.0},
        "kv_cache": {"bytes": kv, "blocks": 10, "tokens": 250_000},
        "memory": {"weights": 18 << 30, "peak_activation": 1 << 30},
        "ttft_ms": ttft,
        "step_ms": {"1": [11.0, 12.0, 14.0], "16": [18.0]},
    }


@pytest.fixture
def result() -> dict[str, Any]:
    plugin = run(
        {
            "stock": {"2048": [330.0, 320.0, 340.0], "512": [80.0]},
            "exact": {"2048": [198.0], "512": [80.0]},
            "fp8": {"2048": [132.0], "512": [60.0]},
        },
        40 << 30,
        H100,
    )
    plugin["seconds"]["measuring"] = 6.5
    plugin["plugin"] = {"banner": "prefill=fp8, …", "scratch_bytes": 128 << 20, "fp8_scale_bytes": 38 << 20}
    plugin["taken"] = {
        "stock": {"512": {WIDE.key: "stock", SMALL.key: "stock"}},
        "exact": {
            "512": {WIDE.key: "stock", SMALL.key: "stock"},
            "2048": {WIDE.key: "exact", SMALL.key: "stock"},
        },
    }
    memory = {
        "before": {"allocated": 5 << 20, "free": 30 << 20},
        "after": {"allocated": 6 << 20, "free": 27 << 20},
    }
    served = {"seconds": 2.0, "digest": "abc", "calls": {"stock": 9}, "memory": memory}
    plugin["load"] = {
        "requests": 3,
        "prompt_tokens": 904,
        "new_tokens": 32,
        "ways": {
            "stock": {**served, "first_difference": [None] * 3},
            "exact": {**served, "first_difference": [None, 7, 3], "margin": [None, 0.01, 0.02]},
        },
    }
    runs = {
        "plugin": plugin,
        "stock": run({"stock": {"2048": [300.0]}}, (40 << 30) + (166 << 20), H100),
        "machete": run({"machete": {"2048": [180.0]}}, 40 << 30, H200),
        "bf16": {**run({"bf16": {"2048": [264.0]}}, 8 << 30, H100), "complete": False},
    }
    return {"settings": SETTINGS, "runs": runs}


def cells(table: str) -> list[list[str]]:
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_cases_name_the_lengths_of_their_prompts() -> None:
    assert lengths("2048") == (2048,)
    assert lengths("4x512") == (512,) * 4
    assert lengths("173+390") == (173, 390)
    assert by_size(["4x512", "8192", "173+390", "512"]) == ["512", "8192", "173+390", "4x512"]


def test_ratios_are_of_medians_within_a_process_and_across(result: dict[str, Any]) -> None:
    assert ttft_ratio(result, ("plugin", "exact"), ("plugin", "stock"), "2048") == pytest.approx(0.6)
    assert ttft_ratio(result, ("plugin", "stock"), ("stock", "stock"), "2048") == pytest.approx(1.1)
    assert ttft_ratio(result, ("plugin", "fp8"), ("bf16", "bf16"), "2048") == pytest.approx(0.5)
    assert ttft_ratio(result, ("plugin", "exact"), ("stock", "stock"), "512") is None


def test_runs_of_different_cards_are_not_compared(result: dict[str, Any]) -> None:
    assert ttft_ratio(result, ("plugin", "exact"), ("machete", "machete"), "2048") is None
    header = cells(engine_tables.ratio_table(result))[0]
    assert not [name for name in header if "machete" in name]
    result["runs"]["stock"]["environment"] = H200
    assert kv_given_up(result, "plugin") is None


def test_bytes_given_up_are_those_that_the_other_process_has_more(result: dict[str, Any]) -> None:
    assert kv_given_up(result, "plugin") == 166 << 20
    assert kv_given_up(result, "stock") is None
    assert kv_given_up(result, "plugin-machete") is None
    found = cells(engine_tables.memory_table(result))
    assert dict(zip(found[0], found[2], strict=True)) == {
        "process": "plugin",
        "weights, GiB": "18.00",
        "peak activation, GiB": "1.00",
        "KV cache, GiB": "40.00",
        "tokens in it": "250,000",
        "given up by the plugin, MiB": "166",
        "scratch, MiB": "128",
        "FP8 scales, MiB": "38.0",
        "start, s": "201",
        "weights prepared, s": "20.0",
        "of it measuring, s": "6.5",
    }


def test_table_of_first_tokens_has_a_column_for_each_way_and_a_row_for_each_case(
    result: dict[str, Any],
) -> None:
    found = cells(engine_tables.ttft_table(result))
    assert found[0] == ["tokens", "plugin: stock", "plugin: exact", "plugin: fp8", "stock", "machete", "bf16"]
    assert found[2:] == [
        ["512", "80.0 (0.0)", "80.0 (0.0)", "60.0 (0.0)", "", "", ""],
        ["2048", "330.0 (20.0)", "198.0 (0.0)", "132.0 (0.0)", "300.0 (0.0)", "180.0 (0.0)", "264.0 (0.0)"],
    ]


def test_table_of_ratios_says_which_shapes_a_way_left_to_the_stock_kernel(result: dict[str, Any]) -> None:
    text = engine_tables.ratio_table(result)
    assert cells(text)[0][1:4] == [
        "plugin: exact / stock",
        "plugin: fp8 / stock",
        "plugin: stock / stock (process)",
    ]
    assert "plugin, exact at 512: all linears by vLLM's kernel" in text
    assert f"plugin, exact at 2048: {SMALL.key} by vLLM's kernel" in text
    assert "plugin, stock at" not in text


def test_tables_name_cards_runs_that_were_cut_off_and_problems(result: dict[str, Any]) -> None:
    result["runs"]["stock"]["problems"] = ["stock: the logits are not finite"]
    report = engine_tables.report(result)
    assert "machete: NVIDIA H200, vllm 0.26.0, torch 2.11.0, triton 3.6.0, driver 580.1" in report
    assert "cut off before the end: bf16" in report
    assert "PROBLEM in stock: stock: the logits are not finite" in report
    assert "prefill=fp8, …" in report


def test_decode_steps_are_held_against_the_same_kernel_without_the_plugin(result: dict[str, Any]) -> None:
    result["runs"]["stock"]["step_ms"]["1"] = [10.0]
    found = cells(engine_tables.step_table(result))
    assert found[2] == ["plugin", "12.000 (3.000)", "", "1.2000", "18.000 (0.000)", "", "1.0000"]
    assert [row[3] for row in found[3:]] == ["", "", ""]


def test_decode_steps_are_held_by_their_kernels_where_both_were_taken(result: dict[str, Any]) -> None:
    runs = result["runs"]
    runs["plugin"]["step_gpu_ms"] = {"1": {"total": 9.18}}
    assert cells(engine_tables.step_table(result))[2][2:4] != ["9.180", "1.0200"]
    runs["stock"]["step_gpu_ms"] = {"1": {"total": 9.0}}
    assert cells(engine_tables.step_table(result))[2][2:4] == ["9.180", "1.0200"]


def test_load_table_counts_requests_alike_and_memory_that_grew(result: dict[str, Any]) -> None:
    found = cells(engine_tables.load_table(result))
    assert found[2] == ["plugin: stock", "2.00", "500", "3 of 3", "", "", "+1.0", "+3.0", "stock 9", "abc"]
    assert found[3][3:6] == ["1 of 3", "3, 7", "0.0200, 0.0200"]


def test_table_of_kernels_names_the_longest_and_has_no_bar_of_its_own(result: dict[str, Any]) -> None:
    assert engine_tables.first_token_kernels_table(result) == "Not taken yet."
    kernels = {"void marlin::Marlin<3, 4>(int4 const*)": 30.0, "a|b": 12.0}
    result["runs"]["stock"]["ttft_gpu_ms"] = {"1024": {"stock": {"total": 42.04, "kernels": kernels}}}
    found = cells(engine_tables.first_token_kernels_table(result))
    assert found[2] == ["stock", "1024", "42.0", "marlin::Marlin 30.0; a b 12.0"]


def test_a_result_of_one_variant_that_only_started_has_tables(result: dict[str, Any]) -> None:
    started = {key: result["runs"]["stock"][key] for key in ("environment", "seconds", "kv_cache")}
    report = engine_tables.report({"settings": SETTINGS, "runs": {"stock": {**started, "complete": False}}})
    assert "Nothing to compare yet." in report
    assert "No decode steps yet." in report
    assert "cut off before the end: stock" in report


def test_tables_need_no_torch(result: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    save(file, result)
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['tables', sys.argv[1]]; "
        "from bench.prefill.engine_tables import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "### Time to first token" in done.stdout


def test_first_differences_and_digest_see_one_token() -> None:
    one, other = [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 9, 6]]
    assert first_differences(one, other) == [None, 1]
    assert digest(one) == digest([list(ids) for ids in one])
    assert digest(one) != digest(other)
