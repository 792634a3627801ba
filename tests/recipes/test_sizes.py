"""Sizes that follow from a layout are those of the published artifact and of what is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.recipes import Packaging, load_recipe, refuse_impossible
from gptq_hybrid.recipes.sizes import (
    hidden_state_bytes,
    native_bytes,
    projection_input_bytes,
    quantized_bytes,
    size_changes,
    working_bytes,
)
from tests.checkpoint.test_layout import CONFIG_27B

LAYOUT = layout_for(CONFIG_27B)
GPTAQ = load_recipe("static-mse-gptaq")
ROOT = Path(__file__).parents[2]


def test_estimates_at_27b_are_those_of_the_published_artifact() -> None:
    # The artifact: about 18 GiB of main shards and 0.79 GiB of MTP head.
    assert 17.5 < quantized_bytes(LAYOUT, {"bits": 4, "group_size": 128}) / 2**30 < 19.5
    # 512 rows of 2,048 tokens, in and out: 21.5 GB.
    assert round(hidden_state_bytes(5120, 512 * 2048) / 1e9, 1) == 21.5
    assert 5 < working_bytes(LAYOUT) / 2**30 < 9
    # A vector of 6,144 a token.
    assert projection_input_bytes(LAYOUT, 512 * 2048) == 2 * 6144 * 512 * 2048


def test_the_estimate_is_close_to_what_is_written(quantized: Callable[..., Any]) -> None:
    checkpoint = Checkpoint.open(quantized("static").path)
    written = sum(info.nbytes for info in checkpoint.loaded.values())
    assert quantized_bytes(layout_for(checkpoint.config), load_recipe("static").settings) == written


def test_native_inputs_at_27b_are_those_of_a_full_attention_layer() -> None:
    # q, k, v, gate and up: 5,120 each; o_proj 6,144; down_proj 17,408. Gated DeltaNet has an input of 5,120 less.
    assert native_bytes(LAYOUT, GPTAQ.settings, 1) == 2 * (5 * 5120 + 6144 + 17408)
    assert round(native_bytes(LAYOUT, GPTAQ.settings, 512 * 2048) / 1e9) == 103
    assert native_bytes(LAYOUT, load_recipe("static-mse").settings, 512 * 2048) == 0
    spared = {**GPTAQ.settings, "dynamic": {r"-:.*\.down_proj$": {}}}
    assert native_bytes(LAYOUT, spared, 1) == 2 * (5 * 5120 + 6144)
    assert working_bytes(LAYOUT, gptaq=True) > working_bytes(LAYOUT)


def test_changes_add_up_to_the_difference_at_27b() -> None:
    static = load_recipe("static")
    base = quantized_bytes(LAYOUT, static.settings)
    for name in ("compact", "careful"):
        recipe = load_recipe(name)
        changes = size_changes(LAYOUT, recipe.settings, recipe.packaging)
        assert (
            sum(change for _, change in changes)
            == quantized_bytes(LAYOUT, recipe.settings, recipe.packaging) - base
        )
    assert size_changes(LAYOUT, static.settings, static.packaging) == []


def test_a_tied_output_head_cannot_be_packed() -> None:
    text = {**CONFIG_27B["text_config"], "tie_word_embeddings": True}
    tied = layout_for({**CONFIG_27B, "text_config": text})
    assert tied.output_head is None
    with pytest.raises(HybridError, match="tied to the embeddings"):
        refuse_impossible(tied, Packaging(lm_head_bits=8), 128, keep_mtp=True)


def test_a_head_that_groups_do_not_divide_cannot_be_packed() -> None:
    with pytest.raises(HybridError, match=r"mtp\.fc .* cannot be packed in groups of 96"):
        refuse_impossible(LAYOUT, Packaging(mtp_bits=4), 96, keep_mtp=True)
    refuse_impossible(LAYOUT, Packaging(mtp_bits=4), 96, keep_mtp=False)


@pytest.mark.parametrize("name", ["static", "compact", "careful"])
def test_the_page_of_recipes_has_the_sizes_that_the_layout_gives(name: str) -> None:
    recipe = load_recipe(name)
    pages = [ROOT / "gptq_hybrid" / "recipes" / "README.md", ROOT / "README.md"]
    page = next(page for page in pages if page.exists())
    lines = page.read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith(f"| `{name}`") and " GiB " in line]
    assert f"| {quantized_bytes(LAYOUT, recipe.settings, recipe.packaging) / 2**30:.1f} GiB |" in row
    for _, change in size_changes(LAYOUT, recipe.settings, recipe.packaging):
        assert f"{'−' if change < 0 else '+'}{abs(change) / 2**30:.2f}" in row
