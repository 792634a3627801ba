"""The tables of the linear benchmark, and the page that holds them."""

from __future__ import annotations

from typing import Any

import pytest

from bench.prefill import layers, linear, linear_tables
from bench.prefill.report import LINEAR, README, TABLES, filled, picture
from bench.results import load

WHERE = {
    "device": "a card",
    "vllm": "0.26.0",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "driver": "1",
}


def shape(module: str, layout: str = "marlin", stock: float = 100.0, exact: float = 60.0) -> dict[str, Any]:
    found = next(m for m in layers.MODULES if m.name == module)
    times = {"stock": stock, "exact": exact, "plugin": exact, "cublas": 50.0}
    rows = [
        {
            "m": m,
            "error": {"exact": 0.001},
            "times": {n: {"us": us, "deviation_us": 0.1} for n, us in times.items()},
        }
        for m in (16, 1024)
    ]
    return {
        "module": module,
        "shape": f"{layout} {found.k}x{found.n} w4 g128 bfloat16",
        "stock": "MarlinLinearKernel",
        "starts": {"exact": 512, "fp8": None},
        "expansion": {"exact": {"columns": 128, "bytes": 256 * found.k, "expand": 30.0, "fill": 20.0}},
        "rows": rows,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    settings = {"dtype": "bfloat16", "group_size": 128, "scratch_mib": 128}
    return {"environment": WHERE, "settings": settings, "shapes": [shape(m.name) for m in layers.MODULES]}


def test_layers_are_counted_as_in_the_model() -> None:
    assert {module.name: module.layers for module in layers.MODULES} == linear_tables.LAYERS


def test_a_pass_is_the_sum_over_its_layers(result: dict[str, Any]) -> None:
    count = sum(linear_tables.LAYERS.values())
    found = linear_tables.passes(result)["marlin"][1024]
    assert found["stock"] == pytest.approx(count * 100 / 1e3)
    assert found["plugin"] == pytest.approx(count * 60 / 1e3)
    assert "plugin_fp8" not in found


def test_a_pass_that_lacks_a_shape_is_left_out(result: dict[str, Any]) -> None:
    del result["shapes"][0]
    assert linear_tables.passes(result) == {}


def test_the_worst_is_over_all_shapes_and_rows(result: dict[str, Any]) -> None:
    row = result["shapes"][2]["rows"][0]
    row["times"] = {**row["times"], "plugin": {"us": 130.0}}
    (ratio, where), *others = linear_tables.worst(result)
    assert ratio == pytest.approx(1.3)
    assert result["shapes"][2]["shape"] in where
    assert "M = 16" in where
    assert not others


def test_the_worst_elsewhere_leaves_out_what_stock_serves(result: dict[str, Any]) -> None:
    below, above = result["shapes"][2]["rows"]
    below["times"] = {**below["times"], "plugin": {"us": 130.0}, "plugin_fp8": {"us": 140.0}}
    above["times"] = {**above["times"], "plugin": {"us": 70.0}, "plugin_fp8": {"us": 80.0}}
    (exact, where), (fp8, _) = linear_tables.worst(result, elsewhere=True)
    assert (exact, fp8) == (pytest.approx(0.7), pytest.approx(0.8))
    assert "M = 1024" in where
    result["shapes"][2]["starts"] = {"exact": None, "fp8": 16}
    (exact, _), (fp8, where) = linear_tables.worst(result, elsewhere=True)
    assert (exact, fp8) == (pytest.approx(0.6), pytest.approx(1.4))
    assert "M = 16" in where


def test_expansion_is_held_against_the_bytes_it_moves(result: dict[str, Any]) -> None:
    text = linear_tables.expansion_table(result)
    # 30 over 20 is 1.50; half a byte and a scale of 2/128 read for two bytes written make 1.26 times as many.
    floor = 20 * (1 + (0.5 + 2 / 128) / 2)
    assert f"| 1.50 | {30 / floor:.2f} |" in text


def test_the_roof_is_the_best_that_was_seen(result: dict[str, Any]) -> None:
    k, n = 17408, 5120
    result["shapes"] = [shape("down")]
    best = 2e-6 * 1024 * k * n / 50.0
    assert f"{best:.0f} TFLOP/s" in linear_tables.roofline_table(result)


def test_a_picture_has_a_panel_for_each_shape(result: dict[str, Any]) -> None:
    figure = picture(result)
    assert len(figure.axes) == len(layers.MODULES)
    assert {line.get_label() for line in figure.axes[0].lines} >= {"stock", "exact", "dense"}


def test_a_relative_error_is_of_root_mean_squares() -> None:
    torch = pytest.importorskip("torch")
    expected = torch.tensor([3.0, -4.0])
    assert linear.relative_rms(expected * 1.5, expected) == pytest.approx(0.5)


def test_the_page_holds_the_tables_of_the_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert filled(text, {path: load(path) for path, _ in TABLES.values()}) == text, (
        "run python -m bench.prefill.report"
    )
    assert load(LINEAR) is not None


def test_a_page_without_a_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        filled("nothing", {})
