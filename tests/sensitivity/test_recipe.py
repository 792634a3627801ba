"""More bits for the costliest modules, within a budget, as a recipe that loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.recipes.sizes import quantized_bytes
from gptq_hybrid.sensitivity import budget_bytes, choose_bits, recipe_bits, refuse_base, write_recipe
from gptq_hybrid.streaming import CheckpointWeights

from .made import result

LAYERS = "model.language_model.layers"
DOWN, QKV = f"{LAYERS}.4.mlp.down_proj", f"{LAYERS}.3.self_attn.qkv_proj"
CHEAP = {4: 1e-5, 8: 1e-7}


def test_the_largest_gain_per_byte_goes_first_and_the_budget_holds(weights: CheckpointWeights) -> None:
    base, layout = load_recipe("static"), weights.layout
    # QKV gains more in all, DOWN more for each of its bytes.
    scanned = result(layout, {DOWN: {4: 0.010, 8: 0.001}, QKV: {4: 0.012, 8: 0.001}}, otherwise=CHEAP)
    size = {m.name: {x.bits: x.bytes for x in m.measured} for m in scanned.modules}
    down, qkv = (size[name][8] - size[name][4] for name in (DOWN, QKV))
    assert choose_bits(scanned, layout, base, down).raised == {DOWN: 8}
    assert choose_bits(scanned, layout, base, down - 1).extra_bytes <= down - 1
    both = choose_bits(scanned, layout, base, down + qkv)
    assert both.raised == {DOWN: 8, QKV: 8}
    assert both.extra_bytes == down + qkv
    assert both.kld_before - both.kld_after == pytest.approx(0.009 + 0.011)


def test_a_budget_for_all_ends_in_bf16_where_8_bits_still_cost(weights: CheckpointWeights) -> None:
    scanned = result(weights.layout, {DOWN: {4: 0.02, 8: 0.01}}, otherwise={4: 1e-5, 8: 0.0})
    choice = choose_bits(scanned, weights.layout, load_recipe("static"), 10**9)
    assert choice.raised[DOWN] == 16
    assert set(choice.raised.values()) == {8, 16}
    assert choice.kld_after == 0


def test_without_8_bits_measured_the_step_is_to_bf16(weights: CheckpointWeights) -> None:
    scanned = result(weights.layout, {DOWN: {4: 0.02}}, otherwise={4: 0.0})
    assert choose_bits(scanned, weights.layout, load_recipe("static"), 10**9).raised == {DOWN: 16}


def test_what_gains_nothing_is_left_alone(weights: CheckpointWeights) -> None:
    scanned = result(weights.layout, {DOWN: {4: 0.01, 8: 0.02}}, otherwise={4: 0.0, 8: 0.0})
    assert choose_bits(scanned, weights.layout, load_recipe("static"), 10**9).raised == {}


@pytest.mark.parametrize("base", ["static", "careful", "compact", "group-aware"])
def test_the_file_is_the_base_recipe_with_the_bits_chosen(
    weights: CheckpointWeights, tmp_path: Path, base: str
) -> None:
    recipe, layout = load_recipe(base), weights.layout
    scanned = result(
        layout, {DOWN: {4: 0.010, 8: 0.001}, QKV: {4: 0.012, 8: 0.001}}, otherwise={4: 1e-9, 8: 1e-9}
    )
    choice = choose_bits(scanned, layout, recipe, 150_000)
    read = write_recipe(tmp_path / "mine.toml", recipe, choice, layout)
    assert load_recipe(tmp_path / "mine.toml") == read
    assert read.packaging == recipe.packaging
    assert {k: v for k, v in read.settings.items() if k != "dynamic"} == {
        k: v for k, v in recipe.settings.items() if k != "dynamic"
    }
    raised = {linear for m in scanned.modules if m.name in choice.raised for linear in m.modules}
    assert raised
    for linear in layout.quantized:
        expected = 8 if linear.name in raised else recipe_bits(recipe.settings, linear.name)
        assert recipe_bits(read.settings, linear.name) == expected, linear.name
    # What the files of the new recipe weigh is what the choice says.
    more = quantized_bytes(layout, read.settings) - quantized_bytes(layout, recipe.settings)
    assert more == choice.extra_bytes <= 150_000
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_bits_of_the_base_recipe_that_were_not_measured_are_an_error(weights: CheckpointWeights) -> None:
    scanned = result(weights.layout, {}, otherwise={8: 1e-6})
    with pytest.raises(HybridError, match="gets 4 bits") as error:
        choose_bits(scanned, weights.layout, load_recipe("static"), 10**6)
    assert "--bits 4" in (error.value.remedy or "")


def test_rules_on_more_than_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "damped.toml"
    path.write_text(
        'description = "d"\n[quantize_config]\nbits = 4\ngroup_size = 128\nsym = true\ndesc_act = false\n'
        "[quantize_config.dynamic]\n'+:^model' = { damp_percent = 0.1 }\n"
    )
    with pytest.raises(HybridError, match="more than bits"):
        refuse_base(load_recipe(path))


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 500_000_000), ("1.5 GiB", 3 * 2**29), ("800000", 800_000), ("12b", 12), ("2kB", 2000)],
)
def test_sizes(weights: CheckpointWeights, text: str, size: int) -> None:
    assert budget_bytes(text, weights.layout, load_recipe("static")) == size


def test_percent_is_of_the_checkpoint_the_base_recipe_makes(weights: CheckpointWeights) -> None:
    base = load_recipe("compact")
    whole = quantized_bytes(weights.layout, base.settings, base.packaging)
    assert budget_bytes("5%", weights.layout, base) == int(0.05 * whole)


@pytest.mark.parametrize("text", ["", "much", "-3MB", "3 percent", "1e9", "5%%"])
def test_what_is_no_size_is_an_error(weights: CheckpointWeights, text: str) -> None:
    with pytest.raises(HybridError, match="is no size"):
        budget_bytes(text, weights.layout, load_recipe("static"))
