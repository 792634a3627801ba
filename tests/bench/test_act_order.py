"""`bench/act_order`: the arithmetic of the report, and what of the measurement runs without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.act_order import before, dummy, gemm, kernels, timing
from bench.act_order.report import README, TABLES, filled, picture
from bench.act_order.results import (
    AGREEMENT,
    ENGINE,
    GEMM,
    MODULES,
    SERVED,
    engine_extras,
    extras,
    form_of,
    same_tokens,
    totals,
)
from bench.act_order.tables import gemm_norms
from bench.results import load
from gptq_hybrid.checkpoint import layout_for
from vllm_qwen36_plugin.act_order.sorting import natural_order

_WHERE = {"device": "a card", "vllm": "0.26.0", "torch": "2.11.0"}


def gemm_row(module: str, m: int) -> dict[str, Any]:
    us = {"none": 30.0, "stock": 36.0, "before+none": 33.0, "before+stock": 39.0}
    if module != "down":
        us |= {"ours": 32.0, "before+ours": 35.0, f"before+{form_of(module)}": 34.0}
    return {"module": module, "m": m, "us": us, "error": {"ours": 0.003, "stock": 0.003}}


@pytest.fixture
def gemm_result() -> dict[str, Any]:
    rows = [gemm_row(module.name, m) for module in MODULES for m in (1, 16)]
    return {"environment": _WHERE, "repeats": 25, "rows": rows, "errors": []}


@pytest.fixture
def engine_result() -> dict[str, Any]:
    def run(one: float, many: float, token: int, permuting: int) -> dict[str, Any]:
        return {
            "environment": _WHERE,
            "layers": {"linears": 256, "permuting": permuting},
            "step_ms": {"1": [one, one + 0.2, one - 0.1], "16": [many, many, many + 1]},
            "tokens": [[token, 1], [7, 1]],
        }

    runs = {
        "none": run(10.0, 15.0, 1, 0),
        "stock": run(12.0, 17.0, 2, 256),
        "ours": run(10.5, 15.4, 2, 192),
    }
    return {"settings": {"layers": 64}, "runs": runs}


def test_modules_are_the_27b_s_fused_linears() -> None:
    text = dummy.config(64, desc_act=True)
    total = sum(linear.in_features * linear.out_features for linear in layout_for(text).quantized)
    assert sum(module.k * module.n * module.layers for module in MODULES) == total


def test_down_adds_nothing_of_ours_and_what_stock_adds() -> None:
    assert extras(gemm_row("down", 1)) == {
        "stock": 6.0,
        "ours": 0.0,
        "stock_compiled": 6.0,
        "ours_compiled": 0.0,
        "checked_compiled": 0.0,
    }


def test_what_is_reported_as_ours_is_the_form_that_the_plugin_has() -> None:
    assert extras(gemm_row("qkv", 1))["ours_compiled"] == 1.0
    assert extras(gemm_row("out", 1))["ours_compiled"] == 1.0
    assert extras(gemm_row("out", 1))["checked_compiled"] == 2.0


def test_totals_count_layers_and_leave_out_an_m_that_lacks_a_module(gemm_result: dict[str, Any]) -> None:
    rows = [row for row in gemm_result["rows"] if (row["module"], row["m"]) != ("qkv", 16)]
    found = totals(rows)
    assert list(found) == [1]
    assert found[1]["stock"] == 6.0 * 256
    assert found[1]["ours"] == 2.0 * 192
    assert found[1]["ratio_ours"] == pytest.approx(0.25)
    assert found[1]["ratio_ours_compiled"] == pytest.approx(1.0 * 192 / (6.0 * 256))


def test_engine_extras_are_of_medians(engine_result: dict[str, Any]) -> None:
    found = engine_extras(engine_result)
    assert found["1"]["stock"] == pytest.approx(2.0)
    assert found["1"]["ratio"] == pytest.approx(0.25)
    assert found["16"]["ratio"] == pytest.approx(0.2)
    assert same_tokens(engine_result["runs"]["stock"], engine_result["runs"]["ours"]) == (2, 2)
    assert same_tokens(engine_result["runs"]["none"], engine_result["runs"]["ours"]) == (1, 2)
    del engine_result["runs"]["none"]
    assert engine_extras(engine_result) == {}


def test_readme_holds_the_tables_of_the_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert filled(text, {path: load(path) for path in (GEMM, ENGINE, AGREEMENT, SERVED)}) == text, (
        "run python -m bench.act_order.report"
    )


def test_report_shows_measured_figures(gemm_result: dict[str, Any], engine_result: dict[str, Any]) -> None:
    results = {GEMM: gemm_result, ENGINE: engine_result, AGREEMENT: load(AGREEMENT), SERVED: load(SERVED)}
    text = filled(README.read_text(encoding="utf-8"), results)
    assert "Not measured yet" not in text
    assert "| 1 | 7.68 | +1.536 | +0.384 | 0.25 |" in text
    assert "ours / stock at batch 1: 0.25" in text
    with pytest.raises(ValueError, match="feet"):
        filled(text.replace(f"<!-- table: {next(iter(TABLES))} -->", "<!-- table: feet -->"), {})


def test_picture_has_a_panel_for_each_m(gemm_result: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    figure = picture(gemm_result)
    assert [axes.get_title() for axes in figure.axes] == ["M = 1", "M = 16"]


def test_sorted_rows_and_gathered_input_give_the_same_product() -> None:
    torch.manual_seed(0)
    weight = kernels.random_packed(512, 64, "cpu")
    order = kernels.order_of(weight)
    plain = kernels.Packed(kernels.rows_sorted(weight), weight.scales, natural_order(512, 128))
    x = torch.randn(3, 512)
    expected = x @ kernels.dequantized(weight)
    found = x.index_select(-1, order) @ kernels.dequantized(plain)
    assert kernels.relative_error(found, expected) < 1e-5
    assert kernels.relative_error(x @ kernels.dequantized(plain), expected) > 0.1


@pytest.mark.parametrize("name", [name for name, forms in before.FUNCTIONS.items() if "gathered" in forms])
def test_operations_that_permute_give_what_the_linear_reads_in_order(name: str) -> None:
    forms = before.FUNCTIONS[name]
    rows, weights = before.inputs(name, 3, "cpu")
    expected = forms["plain"](*rows, *weights)[0]
    width = {module.before: module.k for module in MODULES}[name]
    assert expected.shape == (3, width)
    order = torch.randperm(width, generator=torch.Generator().manual_seed(1))
    if "in_order" in forms:
        pytest.importorskip("vllm")
        from vllm_qwen36_plugin.act_order.norm import register_ops

        register_ops()
    for form in before.permuting(name):
        read = gemm.as_read(form, order)
        assert torch.equal(read, order)
        assert torch.equal(forms[form](*rows, *weights, read)[0], expected[:, order])
    assert gemm.as_read("strided", order).stride() == (2,)


def test_the_form_that_is_reported_is_the_one_that_the_plugin_has() -> None:
    pytest.importorskip("vllm")
    from vllm_qwen36_plugin.act_order import claim, method, norms

    short = {"qkv_proj": "qkv", "gate_up_proj": "gate_up", "in_proj_qkvz": "qkvz"}
    readers = {short[name] for block in norms._BLOCKS for name in block.reads if name in short}
    in_order = {module.name for module in MODULES if form_of(module.name) == "in_order"}
    assert in_order == (set() if claim.FOLD_NORMS == "never" else readers)
    gathers = {module.name: form_of(module.name, ["before+strided", "before+ours"]) for module in MODULES}
    assert {short[name] for name in method._BEHIND_A_NORM} == {
        name for name, form in gathers.items() if form == "strided"
    }


def test_times_from_before_there_was_a_norm_in_order_are_those_of_the_gather() -> None:
    row = gemm_row("gate_up", 1)
    row["us"] = {**row["us"], "before+strided": 33.4}
    row["us"].pop("before+in_order", None)
    assert extras(row)["ours_compiled"] == pytest.approx(0.4)


def test_norms_alone_are_shown_where_they_were_measured(gemm_result: dict[str, Any]) -> None:
    assert gemm_norms(gemm_result) == ""
    gemm_result["rows"][0]["us"] |= {"op": 2.3, "op+ours": 4.8, "op+in_order": 2.6, "op+in_order/16": 2.5}
    text = gemm_norms(gemm_result)
    assert "| norm before | M | as it is | index_select | in_order | in_order/16 |" in text
    assert "| qkv | 1 | 2.30 | 4.80 | 2.60 | 2.50 |" in text


def test_a_norm_is_timed_alone_in_every_form_and_other_operations_are_not() -> None:
    pytest.importorskip("vllm")

    class Plain:
        def get(self, name: str, form: before.Form, order: torch.Tensor | None = None) -> Any:
            return before.FUNCTIONS[name][form]

    gemms: gemm.Gemms = {"none": [lambda x: x], "stock": [lambda x: x]}
    for module in MODULES:
        order = torch.arange(module.k)
        found = gemm.calls_of(module, 1, order, gemms, Plain(), "cpu")  # type: ignore[arg-type]
        alone = {name for name in found if name == "op" or name.startswith("op+")}
        norm = {"op", "op+ours", "op+unchecked", "op+strided", "op+in_order"}
        assert alone == (norm if module.before.startswith("norm") else set())
        assert module.name == "down" or f"before+{form_of(module.name)}" in found


def test_forms_are_compiled_apart() -> None:
    codes = [function.__code__ for forms in before.FUNCTIONS.values() for function in forms.values()]
    assert len(set(map(id, codes))) == len(codes)


def test_weights_of_a_graph_exceed_the_cache_and_calls_use_each_copy() -> None:
    used: list[int] = []
    for module in MODULES:
        assert gemm.copies_of(module) * module.k * module.n // 2 >= 200 << 20
    order = torch.arange(4)

    def copy(number: int) -> kernels.Gemm:
        def call(x: torch.Tensor) -> torch.Tensor:
            used.append(number)
            return x

        return call

    copies = [copy(number) for number in range(5)]
    small = MODULES[-1]
    row = gemm.measure(small, 1, order, {"none": copies, "stock": copies}, None, 3, "cpu")
    assert set(row["us"]) == {"none", "stock"}
    assert {used.count(i) for i in range(5)} == {used.count(0)}


def test_variants_take_turns() -> None:
    seen: list[str] = []
    runs = {name: timing.recorded([lambda name=name: seen.append(name)], "cpu") for name in "abc"}  # type: ignore[misc]
    found = timing.in_turns(runs, 3, "cpu")
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(seen) == "cabc" + "abca" + "bcab"
    assert timing.spread([1.0, 2.0, 9.0]) == (2.0, 1.0)


def test_random_order_is_an_act_order_and_always_the_same() -> None:
    order = dummy.random_order(512, 128)
    assert torch.equal(order, dummy.random_order(512, 128))
    assert not torch.equal(order, natural_order(512, 128))
    assert torch.equal(order.sort().values, natural_order(512, 128))
    assert order.dtype == torch.int32
