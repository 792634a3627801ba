"""What serving takes of a GPU's memory agrees with what engines reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.memory import cache_layout, fit, parse_size, weight_bytes
from gptq_hybrid.memory.cache import CPU_ALIGNMENT
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.recipes.sizes import quantized_bytes

from .full_size import write_27b

GIB = 1 << 30
Full = Callable[[str | None], Checkpoint]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Full:
    made: dict[str | None, Checkpoint] = {}

    def open_27b(recipe: str | None) -> Checkpoint:
        if recipe not in made:
            folder = tmp_path_factory.mktemp("27b") / (recipe or "original")
            made[recipe] = Checkpoint.open(write_27b(folder, recipe))
        return made[recipe]

    return open_27b


@pytest.mark.parametrize("recipe", ["static-mse", "compact"])
def test_the_parts_add_up_to_the_files(full: Full, recipe: str) -> None:
    checkpoint = full(recipe)
    chosen = load_recipe(recipe)
    total = weight_bytes(checkpoint).total
    assert total == sum(info.nbytes for info in checkpoint.loaded.values())
    # `dynamic` of these recipes spares nothing in the layers.
    assert total == quantized_bytes(layout_for(checkpoint.config), chosen.settings, chosen.packaging)


def test_parts_are_told_apart_at_27b(full: Full) -> None:
    sizes = weight_bytes(full("static-mse"))
    gib = {name: round(getattr(sizes, name) / GIB, 1) for name in ("linears", "embedding", "output_head")}
    assert gib == {"linears": 11.8, "embedding": 2.4, "output_head": 2.4}
    assert round(sizes.mtp / 1e9, 2) == 0.85
    assert sizes.total - sizes.served(drafts=False, images=False) == sizes.mtp + sizes.vision
    assert weight_bytes(full("compact")).vision == 0


@pytest.mark.parametrize(("gib", "reported"), [(21.79, 166_000), (9.86, 75_000)])
def test_the_reference_card_s_cache_comes_out(full: Full, gib: float, reported: int) -> None:
    """Two drafts, FP8 KV, vLLM 0.19.1, which logged the blocks of one of four groups as all tokens."""
    layout = cache_layout(full("static-mse"), drafts=2, kv_dtype="fp8")
    groups = 1 + layout.sequence_blocks // layout.states
    assert groups == 4
    logged = int(gib * GIB) // layout.block_bytes // groups * layout.block_tokens
    assert logged == pytest.approx(reported, rel=0.015)


@pytest.mark.parametrize(("length", "tokens"), [(512, 65_536), (32_768, 250_406)])
def test_the_cpu_engine_s_cache_comes_out(original: DemoCheckpoint, length: int, tokens: int | None) -> None:
    """As vLLM 0.32.0's CPU build logged it for the demo: 1 GiB, two drafts, no prefix caching, blocks of 256."""
    checkpoint = Checkpoint.open(original.path)
    layout = cache_layout(checkpoint, drafts=2, prefix_caching=False, alignment=CPU_ALIGNMENT)
    assert layout.block_tokens == 256
    assert layout.reported_tokens(GIB, length) == tokens


def test_a_state_of_the_27b_is_what_its_shapes_say(full: Full) -> None:
    without = cache_layout(full("static-mse"), kv_dtype="fp8", prefix_caching=False)
    drafting = cache_layout(full("static-mse"), drafts=2, kv_dtype="fp8", prefix_caching=False)
    # 48 value heads of 128 × 128 in float32; 10,240 channels of the convolution, 3 values each, in BF16.
    assert without.state_bytes == 48 * 128 * 128 * 4 + 10240 * 3 * 2
    assert drafting.state_bytes - without.state_bytes == 10240 * 2 * 2
    # Three copies, one of them for each draft, padded by a page's rounding.
    assert drafting.sequence_bytes / GIB == pytest.approx(3 * 48 * drafting.state_bytes / GIB, rel=0.08)
    assert (without.attention_layers, drafting.attention_layers) == (16, 17)
    assert drafting.token_bytes * drafting.attention_layers == 34_816


def test_compact_gets_what_it_saves_as_context(full: Full) -> None:
    wide, narrow = (fit(full(name), 24 * GIB, drafts=2, kv_dtype="fp8") for name in ("static-mse", "compact"))
    assert (narrow.cache - wide.cache) / GIB == pytest.approx(
        1.5, abs=0.1
    )  # 2.4 less the tower, which both leave out
    assert narrow.context >= 2 * wide.context > 0


@pytest.mark.parametrize("gib", [20, 22.5, 24, 32, 45, 80, 140])
@pytest.mark.parametrize("drafts", [0, 2, 4])
def test_what_is_promised_fits_the_cache(full: Full, gib: float, drafts: int) -> None:
    found = fit(full("static-mse"), int(gib * GIB), drafts=drafts, kv_dtype="fp8")
    if not found.fits:
        assert gib < 22
        assert "no room" in found.text()
        return
    assert found.layout.bytes_for(found.context, found.sequences) <= found.cache
    assert found.loaded + found.cache < found.usable < gib * GIB
    assert found.context <= 262144
    assert f"{found.tokens:,} tokens" in found.text()


def test_an_original_does_not_fit_a_small_card(full: Full) -> None:
    found = fit(full(None), 24 * GIB, drafts=2)
    assert not found.fits
    assert found.context == 0


def test_the_reference_card_s_flags_are_no_more_than_what_is_derived(full: Full) -> None:
    """Its authors ran 8 sequences, 200,000 tokens and 4 images on an L40S."""
    found = fit(full("static-mse"), 45 * GIB, drafts=2, kv_dtype="fp8")
    assert found.images
    assert found.sequences == 8
    assert found.context >= 200_000


def test_more_drafts_leave_fewer_tokens(full: Full) -> None:
    tokens = [fit(full("compact"), 24 * GIB, drafts=n, kv_dtype="fp8", sequences=2).tokens for n in range(5)]
    assert tokens == sorted(tokens, reverse=True)
    assert len(set(tokens)) == 5


@pytest.mark.parametrize(
    ("text", "gib"), [("24GiB", 24), ("24 GB", 24), (" 22.5g ", 22.5), ("RTX 4090", None), ("24", None)]
)
def test_a_size_is_read_as_cards_are_sold(text: str, gib: float | None) -> None:
    assert parse_size(text) == (None if gib is None else int(gib * GIB))


@pytest.mark.parametrize("text", ["0GiB", "0.5 GiB", "99999999 GB"])
def test_an_absurd_size_is_refused(text: str) -> None:
    with pytest.raises(HybridError, match="no GPU's memory"):
        parse_size(text)


def test_an_unknown_dtype_is_an_error_of_the_program(full: Full) -> None:
    with pytest.raises(ValueError, match="unknown KV dtype"):
        cache_layout(full("static-mse"), kv_dtype="int3")


def test_a_model_without_both_kinds_of_layers_is_refused(full: Full) -> None:
    checkpoint = full("static-mse")
    text: Any = {**checkpoint.text_config, "layer_types": ["full_attention"] * 64}
    with pytest.raises(HybridError, match="Gated DeltaNet"):
        cache_layout(Checkpoint(checkpoint.files, {**checkpoint.config, "text_config": text}))


def test_files_of_holes_take_no_disk(full: Full) -> None:
    folder = Path(full("static-mse").location)
    assert sum(file.stat().st_blocks for file in folder.iterdir()) * 512 < 4 << 20
