"""What stands out is flagged; what scatters as layers do is not."""

from __future__ import annotations

import pytest

from gptq_hybrid.losses import FLAGS, ModuleRecord, find_flags, find_outliers
from tests.losses.made import changed, records


def outliers(made: dict[str, ModuleRecord]) -> dict[str, float]:
    return find_outliers(list(made.values()))


def test_layers_that_scatter_are_no_outliers() -> None:
    alarms = sum(len(outliers(records(64, seed))) for seed in range(20))
    assert alarms == 0


def test_one_layer_far_above_its_kind_is_an_outlier_and_says_by_how_much() -> None:
    made = records(64)
    (before,) = [r.relative_error for n, r in made.items() if n.endswith("layers.5.mlp.up_proj")]
    times = outliers(changed(made, "5.mlp.up_proj", relative_error=10 * before))
    assert list(times) == ["5.mlp.up_proj"]
    assert times["5.mlp.up_proj"] == pytest.approx(10 * before / 0.004, rel=0.1)


def test_outliers_do_not_hide_one_another() -> None:
    made = records(16)
    for layer in (0, 1, 2, 3):
        made = changed(made, f"{layer}.mlp.down_proj", relative_error=0.5)
    assert list(outliers(made)) == [f"{layer}.mlp.down_proj" for layer in (0, 1, 2, 3)]


def test_a_module_is_held_against_its_own_kind_only() -> None:
    made = changed(records(16), "3.mlp.gate_proj", relative_error=0.03)
    # 0.03 is nothing special among the out_proj of this seed times 4, but 15 times the gates' 0.002.
    assert list(outliers(made)) == ["3.mlp.gate_proj"]


@pytest.mark.parametrize(("layers", "expected"), [(7, []), (8, ["3.mlp.up_proj"])])
def test_few_layers_have_no_outliers(layers: int, expected: list[str]) -> None:
    assert list(outliers(changed(records(layers), "3.mlp.up_proj", relative_error=0.9))) == expected


def test_layers_that_are_alike_need_twice_the_median() -> None:
    made = {name: record for name, record in records(16).items() if name.endswith("up_proj")}
    for layer in range(16):
        made = changed(made, f"{layer}.mlp.up_proj", relative_error=0.004 + 1e-7 * layer)
    assert outliers(changed(made, "3.mlp.up_proj", relative_error=0.0078)) == {}
    assert list(outliers(changed(made, "3.mlp.up_proj", relative_error=0.0082))) == ["3.mlp.up_proj"]


def test_a_loss_far_below_is_none() -> None:
    assert outliers(changed(records(16), "3.mlp.up_proj", relative_error=1e-7)) == {}


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ({}, ()),
        ({"outcome": "fallback", "relative_error": None, "loss": None}, ("fallback",)),
        ({"outcome": "nan", "relative_error": None, "loss": None}, ("nan",)),
        ({"nonfinite_columns": 1}, ("nonfinite",)),
        ({"floor": 0.001, "damp": 0.9}, ("floor", "damped")),
        ({"damp": 0.02}, ("damped",)),
        # The log has five decimals.
        ({"damp": 0.010004}, ()),
        ({"tokens": 255}, ("starved",)),
        ({"tokens": 256}, ()),
        ({"dead_columns": 1}, ("dead",)),
    ],
)
def test_each_fault_has_its_flag(values: dict[str, object], flags: tuple[str, ...]) -> None:
    by_module = find_flags(list(changed(records(4), "2.mlp.up_proj", **values).values()))
    assert by_module.pop("2.mlp.up_proj") == flags
    assert not any(by_module.values())
    assert set(flags) <= set(FLAGS)


def test_what_a_log_does_not_say_is_no_fault() -> None:
    assert find_flags([ModuleRecord("layers.0.mlp.up_proj", loss=1e-6)]) == {"0.mlp.up_proj": ()}


@pytest.mark.parametrize(
    ("module", "layer", "kind"),
    [
        ("model.language_model.layers.7.mlp.up_proj", 7, "mlp.up_proj"),
        ("layers.7.mlp.up_proj", 7, "mlp.up_proj"),
        ("lm_head", None, "lm_head"),
        # The MTP head counts its layers by itself, and other names only end alike.
        ("mtp.layers.0.mlp.up_proj", None, "mtp.layers.0.mlp.up_proj"),
        ("players.7.mlp", None, "players.7.mlp"),
        ("layers.x.mlp", None, "layers.x.mlp"),
    ],
)
def test_a_full_name_tells_layer_and_kind(module: str, layer: int | None, kind: str) -> None:
    record = ModuleRecord(module)
    assert (record.layer, record.kind) == (layer, kind)
    assert record.name == (kind if layer is None else f"{layer}.{kind}")
