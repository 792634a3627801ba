"""Recipes say what they mean to gptqmodel and to vLLM alike, and a wrong one is refused with the key's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_hybrid.checkpoint import TensorLayout, layout_for
from gptq_hybrid.checkpoint.formats.gptq import settings as module_settings
from gptq_hybrid.checkpoint.quantization import dynamic_rule
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.recipes import Packaging, dynamic_rules, load_recipe, recipe_names
from tests.checkpoint.test_layout import CONFIG_27B

LAYOUT = layout_for(CONFIG_27B)
LAYER = "model.language_model.layers"
EVERYTHING = Path(__file__).with_name("everything.toml")
GOOD = """
description = "x"
[quantize_config]
bits = 4
group_size = 128
sym = true
desc_act = false
"""


def vllm_names(layout: TensorLayout) -> dict[str, str]:
    """vLLM's name by module of the checkpoint, fused ones under the name of the whole."""
    names = {linear.name: linear.name for linear in layout.quantized}
    names |= {shard: fused.name for fused in layout.fused for shard in fused.shards}
    return {
        ours: "language_model.model." + theirs.removeprefix("model.language_model.")
        for ours, theirs in names.items()
    }


def bits_for(config: Mapping[str, Any], name: str) -> int:
    return 16 if dynamic_rule(config, name) is False else module_settings(config, name)[0]


def wholes(layout: TensorLayout) -> list[tuple[str, ...]]:
    inside = {shard for fused in layout.fused for shard in fused.shards}
    return [fused.shards for fused in layout.fused] + [
        (linear.name,) for linear in layout.quantized if linear.name not in inside
    ]


@pytest.mark.parametrize("name", [*recipe_names(), EVERYTHING])
def test_a_recipe_means_the_same_by_either_name_and_leaves_the_mtp_head_alone(name: str | Path) -> None:
    recipe = load_recipe(name)
    for ours, theirs in vllm_names(LAYOUT).items():
        assert bits_for(recipe.settings, ours) == bits_for(recipe.settings, theirs), ours
    for spec in LAYOUT.mtp:
        assert dynamic_rule(recipe.settings, spec.name.removesuffix(".weight")) is None


def test_careful_spares_some_modules_and_fused_ones_alike() -> None:
    recipe = load_recipe("careful")
    choices = {linear.name: bits_for(recipe.settings, linear.name) for linear in LAYOUT.quantized}
    assert set(choices.values()) > {4}
    made = {"bits": 4, "group_size": 128, "dynamic": dynamic_rules(LAYOUT, choices)}
    assert {name: bits_for(made, name) for name in choices} == choices
    for pattern in recipe.settings["dynamic"]:
        alone = {**recipe.settings, "dynamic": {pattern: recipe.settings["dynamic"][pattern]}}
        assert any(dynamic_rule(alone, name) is not None for name in choices), f"{pattern} matches nothing"


@pytest.mark.parametrize("more", ["", ', device = "auto"'])
def test_gptaq_reaches_gptqmodel_and_stays_in_main_memory_unless_asked(tmp_path: Path, more: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + f"gptaq = {{ alpha = 0.5{more} }}\n")
    gptaq = load_recipe(path).quantize_config().gptaq
    assert (gptaq.alpha, gptaq.device) == (0.5, "auto" if more else "cpu")
    assert load_recipe("static-mse").quantize_config().gptaq is None


def test_static_mse_gptaq_differs_from_static_mse_by_gptaq_alone() -> None:
    recipe, plain = load_recipe("static-mse-gptaq"), load_recipe("static-mse")
    assert recipe.settings == {**plain.settings, "gptaq": {"alpha": 0.25}}
    assert recipe.packaging == plain.packaging


def test_compact_packs_both_heads_and_leaves_the_tower_out() -> None:
    packaging = load_recipe("compact").packaging
    assert packaging.lm_head_bits == 8
    assert packaging.mtp_bits < 16
    assert packaging.text_only


def test_the_tests_own_recipe_is_read_from_its_path() -> None:
    for path in (EVERYTHING, str(EVERYTHING)):
        recipe = load_recipe(path)
        assert (recipe.name, recipe.packaging.mtp_bits) == ("everything", 4)


def test_layers_of_a_kind_merge_into_one_rule() -> None:
    choices = {f"{LAYER}.{n}.mlp.down_proj": 8 for n in (0, 7, 63)}
    choices |= {f"{LAYER}.{n}.mlp.{name}_proj": 16 for n in (1, 2) for name in ("gate", "up")}
    roots = r"(?:model\.language_model|language_model\.model|model)"
    assert dynamic_rules(LAYOUT, choices) == {
        rf"+:^{roots}\.layers\.(?:0|7|63)\.mlp\.down_proj$": {"bits": 8},
        rf"-:^{roots}\.layers\.(?:1|2)\.mlp\.(?:gate_proj|gate_up_proj|up_proj)$": {},
    }


def test_choices_like_the_rest_need_no_rule() -> None:
    assert dynamic_rules(LAYOUT, {f"{LAYER}.0.mlp.down_proj": 4}) == {}
    eight = dynamic_rules(LAYOUT, {f"{LAYER}.0.mlp.down_proj": 4}, bits=8)
    assert list(eight.values()) == [{"bits": 4}]


WHOLES = wholes(LAYOUT)


@given(picked=st.lists(st.tuples(st.integers(0, len(WHOLES) - 1), st.sampled_from([4, 8, 16])), max_size=25))
@settings(max_examples=25, deadline=None)
def test_any_choice_comes_back_by_either_name(picked: list[tuple[int, int]]) -> None:
    choices = {module: bits for number, bits in dict(picked).items() for module in WHOLES[number]}
    config = {"bits": 4, "group_size": 128, "dynamic": dynamic_rules(LAYOUT, choices)}
    for ours, theirs in vllm_names(LAYOUT).items():
        expected = choices.get(ours, 4)
        text_only = ours.replace("model.language_model.", "model.")
        assert {bits_for(config, name) for name in (ours, theirs, text_only)} == {expected}, ours


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({f"{LAYER}.0.mlp.gate_proj": 8}, "gate_up_proj as one, so its parts need the same bits"),
        ({f"{LAYER}.3.self_attn.q_proj": 16, f"{LAYER}.3.self_attn.k_proj": 8}, "need the same bits"),
        ({f"{LAYER}.0.self_attn.q_proj": 8}, "is not among the modules"),
        ({"lm_head": 8}, "is not among the modules"),
        ({f"{LAYER}.0.mlp.down_proj": 3}, "3 bits"),
    ],
)
def test_what_vllm_cannot_load_is_refused(choices: dict[str, int], message: str) -> None:
    with pytest.raises(HybridError, match=message):
        dynamic_rules(LAYOUT, choices)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "bit = 4\n", r"`quantize_config\.bit` is not known"),
        (GOOD + "[lmhead]\nbits = 8\n", r"`lmhead` is not known"),
        (GOOD + "[lm_head]\nbit = 8\n", r"`lm_head\.bit` is not known"),
        (GOOD + "[lm_head]\nbits = 4\n", r"`lm_head\.bits` is 4"),
        (GOOD + "[mtp]\nbits = 2\n", r"`mtp\.bits` is 2"),
        (GOOD + "[checkpoint]\ntext_only = 1\n", r"`checkpoint\.text_only` is 1"),
        (GOOD + "mtp = 4\n", r"`quantize_config\.mtp` is not known"),
        ("mtp = 4\n" + GOOD, "`mtp` must be a table"),
        (GOOD.replace("bits = 4", "bits = 3"), r"`quantize_config\.bits` is 3"),
        (GOOD.replace("sym = true", "sym = false"), r"`quantize_config\.sym` is False"),
        (GOOD.replace("group_size = 128\n", ""), "lacks `group_size`"),
        (GOOD.replace('description = "x"', ""), "`description` must be a sentence"),
        (GOOD + "[quantize_config.dynamic]\n'+:(' = { bits = 8 }\n", "is not a regular expression"),
        (GOOD + "[quantize_config.dynamic]\n'+:x' = { bit = 8 }\n", "`bit` is not known"),
        (GOOD + "[quantize_config.dynamic]\n'+:x' = { bits = 5 }\n", "`bits` is 5"),
        (GOOD + "[quantize_config.dynamic]\n'+:x' = 8\n", "must be a table"),
        (GOOD + "dynamic = 8\n", "must be a table of rules"),
        (GOOD + "[quantize_config.dynamic]\n'-:.*mtp.*' = {}\n", "about the MTP head"),
        (GOOD + "gptaq = 0.25\n", r"`quantize_config\.gptaq` must be a table"),
        (GOOD + "gptaq = {}\n", r"`quantize_config\.gptaq\.alpha` is None"),
        (GOOD + "gptaq = { alpha = 0 }\n", r"`quantize_config\.gptaq\.alpha` is 0"),
        (GOOD + "gptaq = { alpha = 1.5 }\n", r"`quantize_config\.gptaq\.alpha` is 1\.5"),
        (GOOD + "gptaq = { alpha = true }\n", r"`quantize_config\.gptaq\.alpha` is True"),
        (GOOD + "gptaq = { alpha = nan }\n", r"`quantize_config\.gptaq\.alpha` is nan"),
        (GOOD + "gptaq = { alpha = 0.25, beta = 0.2 }\n", r"`quantize_config\.gptaq\.beta` is not known"),
        (GOOD + 'gptaq = { alpha = 0.25, device = "gpu" }\n', r"`quantize_config\.gptaq\.device` is 'gpu'"),
        (GOOD + "act_group_aware = true\ngptaq = { alpha = 0.25 }\n", "would ignore `act_group_aware`"),
        (GOOD + "[tune]\nsteps = -1\n", r"`tune\.steps` is -1"),
        (GOOD + "[tune]\nsteps = 0\n", "neither `steps` nor `align_tokens`"),
        (GOOD + "[tune]\nsteps = 1.5\n", r"`tune\.steps` is 1\.5"),
        (GOOD + "[tune]\nscale_rate = nan\n", r"`tune\.scale_rate` is nan"),
        (GOOD + "[tune]\nnorm_rate = true\n", r"`tune\.norm_rate` is True"),
        (GOOD + "[tune]\nrate = 1\n", r"`tune\.rate` is not known"),
        (
            GOOD.replace("desc_act = false", "desc_act = true") + "[tune]\n",
            "groups in act order cannot be tuned",
        ),
        ("= 4", "is not TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_with_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(HybridError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["statik", "no-such.toml", "folder/none.toml"])
def test_a_recipe_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(HybridError, match=r"no recipe is called|cannot be read"):
        load_recipe(name)


@pytest.mark.parametrize("bits", [{"lm_head_bits": 4}, {"mtp_bits": 5}])
def test_packaging_takes_no_other_bits(bits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="bits"):
        Packaging(**bits)
