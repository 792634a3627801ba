"""JSON, tables and the picture."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from gptq_hybrid.common.typed_json import FormatError
from gptq_hybrid.sensitivity import (
    plot_sensitivity,
    rank_modules,
    read_sensitivity,
    sensitivity_summary,
    sensitivity_tables,
    write_sensitivity,
    write_sensitivity_page,
)
from gptq_hybrid.sensitivity._plot import _grid
from gptq_hybrid.streaming import CheckpointWeights

from .made import result

LAYERS = "model.language_model.layers"
DOWN, QKV = f"{LAYERS}.4.mlp.down_proj", f"{LAYERS}.3.self_attn.qkv_proj"
CHEAP = {4: 1e-5, 8: 1e-7}


def test_json_comes_back_as_it_was(weights: CheckpointWeights, tmp_path: Path) -> None:
    made = result(weights.layout, {DOWN: {4: 0.01, 8: 0.001}}, otherwise=CHEAP)
    path = tmp_path / "new" / "sensitivity.json"
    write_sensitivity(path, made)
    assert json.loads(path.read_text())["schema"] == 1
    assert read_sensitivity(path) == made


@pytest.mark.parametrize(
    "damage", [{"schema": 2}, {"modules": "none"}, {"reference": None}, {"together": [{"form": "rtn4"}]}]
)
def test_other_json_is_refused(weights: CheckpointWeights, tmp_path: Path, damage: dict[str, object]) -> None:
    path = tmp_path / "sensitivity.json"
    write_sensitivity(path, result(weights.layout, {}, otherwise=CHEAP))
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(FormatError) as error:
        read_sensitivity(path)
    assert "qwen36 sensitivity" in (error.value.remedy or "")


def test_modules_are_ranked_by_what_they_cost(weights: CheckpointWeights) -> None:
    made = result(weights.layout, {DOWN: {4: 0.01, 8: 0.001}, QKV: {4: 0.02, 8: 0.0001}}, otherwise=CHEAP)
    assert [module.name for module, _ in rank_modules(made)[:2]] == [QKV, DOWN]
    assert [module.name for module, _ in rank_modules(made, "rtn8")[:2]] == [DOWN, QKV]


@pytest.mark.parametrize(("width", "wide"), [(110, True), (80, False)])
def test_tables_fit_and_name_the_costliest(weights: CheckpointWeights, width: int, wide: bool) -> None:
    made = result(weights.layout, {DOWN: {4: 0.01, 8: 0.001}}, otherwise=CHEAP)
    out = StringIO()
    Console(file=out, width=width).print(sensitivity_tables(made, worst=1, wide=wide))
    lines = out.getvalue().splitlines()
    costliest = next(i for i, line in enumerate(lines) if "Costliest" in line)
    shown = [line for line in lines[costliest:] if "mlp.down_proj" in line]
    assert shown[0].split()[0] == "4"
    assert all("…" not in line for line in lines)
    assert any(line.strip().startswith("sum / together") for line in lines)
    assert "0.0000" not in out.getvalue()


def test_the_summary_names_the_costliest_and_explains_the_head(weights: CheckpointWeights) -> None:
    made = result(weights.layout, {DOWN: {4: 0.01, 8: 0.001}}, otherwise=CHEAP)
    first, *others = sensitivity_summary(made)
    assert first.startswith(
        "Costliest at rtn4: mlp.down_proj of layer 4, with 10 m-nats per token by itself."
    )
    assert any(line.startswith("(lm_head: most recipes leave it in 16 bits") for line in others)


def test_the_picture_places_modules_by_layer_and_kind(weights: CheckpointWeights, tmp_path: Path) -> None:
    import matplotlib.image
    import numpy as np

    made = result(weights.layout, {DOWN: {4: 0.01, 8: 0.001}}, otherwise=CHEAP)
    kinds, values = _grid(made, "rtn4", np)
    assert values.shape == (len(kinds), 8 + 2)
    assert values[kinds.index("mlp.down_proj"), 4] == 0.01
    assert np.isnan(values[kinds.index("self_attn.qkv_proj"), 4])
    assert values[kinds.index("lm_head"), 9] == 1e-5
    plot_sensitivity(made, tmp_path / "map.png")
    assert matplotlib.image.imread(tmp_path / "map.png").shape[1] > 500
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_a_precision_that_changed_nothing_can_be_drawn(weights: CheckpointWeights, tmp_path: Path) -> None:
    plot_sensitivity(result(weights.layout, {}, otherwise={4: 0.0}), tmp_path / "map.png")
    assert (tmp_path / "map.png").is_file()


def test_the_page_has_every_module(weights: CheckpointWeights, tmp_path: Path) -> None:
    made = result(weights.layout, {DOWN: {4: 0.01, 8: 0.001}}, otherwise=CHEAP)
    plot_sensitivity(made, tmp_path / "sensitivity.png")
    write_sensitivity_page(made, tmp_path / "sensitivity.html", picture=tmp_path / "sensitivity.png")
    text = (tmp_path / "sensitivity.html").read_text()
    first_table = text.partition("<tbody>")[2].partition("</tbody>")[0]
    assert first_table.count("<tr>") == len(rank_modules(made))
    assert "data:image/png;base64," in text
