"""What can be known to fail is said before the run, with what to do about it."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.quantize import QuantizeRequest, _preflight, preflight
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.recipes.packaging import Packaging, refuse_impossible
from gptq_hybrid.recipes.sizes import (
    choices,
    hidden_state_bytes,
    kept_bytes,
    quantized_bytes,
    working_bytes,
)
from tests.checkpoint.test_layout import CONFIG_27B

Usage = namedtuple("Usage", "total used free")


def test_a_good_source_is_described_and_nothing_is_written(original: DemoCheckpoint, tmp_path: Path) -> None:
    found = preflight(QuantizeRequest(original.path, tmp_path / "out"))
    facts = dict(found.facts)
    assert "15 tensors" in facts["MTP head"]
    assert "25 modules" in facts["source"]
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_refused(
    original: DemoCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 30, (1 << 30) - 4096, 4096))
    with pytest.raises(HybridError, match="are needed"):
        preflight(QuantizeRequest(original.path, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_estimates_at_27b_are_those_of_the_published_artifact() -> None:
    layout = layout_for(CONFIG_27B)
    # The artifact: about 18 GiB of main shards and 0.79 GiB of MTP head.
    assert 17.5 < quantized_bytes(layout, {"bits": 4, "group_size": 128}) / 2**30 < 19.5
    # 512 rows of 2,048 tokens, in and out: 21.5 GB.
    assert round(hidden_state_bytes(5120, 512, 2048) / 1e9, 1) == 21.5
    assert 5 < working_bytes(layout) / 2**30 < 9
    # A vector of 6,144 a token.
    assert kept_bytes(layout, 512 * 2048) == 2 * 6144 * 512 * 2048


def test_the_estimate_is_close_to_what_is_written(original: DemoCheckpoint, quantized) -> None:  # type: ignore[no-untyped-def]
    from gptq_hybrid.checkpoint import Checkpoint

    path = quantized("static").path
    written = sum(info.nbytes for info in Checkpoint.open(path).loaded.values())
    layout = layout_for(Checkpoint.open(path).config)
    assert quantized_bytes(layout, load_recipe("static").settings) == written


def test_what_a_recipe_saves_is_said_choice_by_choice(original: DemoCheckpoint, tmp_path: Path) -> None:
    request = QuantizeRequest(original.path, tmp_path / "out", recipe=load_recipe("compact"))
    found = preflight(request)
    said = [value for _, value in found.facts]
    assert any(value.startswith("lm_head in 8 bit: ") and value.endswith(" less") for value in said)
    assert any(value.startswith("MTP head in ") and value.endswith(" less") for value in said)
    assert any(value.startswith("no vision tower: ") and value.endswith(" less") for value in said)
    assert any("text alone" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("recipe", "warned"), [("reference", True), ("static", False), ("group-aware", False)]
)
def test_what_act_order_will_cost_is_said(
    original: DemoCheckpoint, tmp_path: Path, recipe: str, warned: bool
) -> None:
    found = preflight(QuantizeRequest(original.path, tmp_path / "out", recipe=load_recipe(recipe)))
    assert any(warning.startswith("act order: ") for warning in found.warnings) is warned


def test_choices_add_up_to_the_difference_at_27b() -> None:
    layout = layout_for(CONFIG_27B)
    static = load_recipe("static")
    base = quantized_bytes(layout, static.settings)
    for name in ("compact", "careful"):
        recipe = load_recipe(name)
        changes = choices(layout, recipe.settings, recipe.packaging)
        assert (
            sum(change for _, change in changes)
            == quantized_bytes(layout, recipe.settings, recipe.packaging) - base
        )
    assert choices(layout, static.settings, static.packaging) == []


def test_a_tied_output_head_cannot_be_packed() -> None:
    tied = {**CONFIG_27B, "tie_word_embeddings": True}
    with pytest.raises(HybridError, match="tied to the embeddings"):
        refuse_impossible(layout_for(tied), Packaging(lm_head_bits=8), 128, keep_mtp=True)


@pytest.mark.parametrize("name", ["static", "compact", "careful"])
def test_the_page_of_recipes_has_the_sizes_that_the_layout_gives(name: str) -> None:
    recipe, layout = load_recipe(name), layout_for(CONFIG_27B)
    page = Path(__file__).parents[2] / "gptq_hybrid" / "recipes" / "README.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith(f"| `{name}`") and " GiB " in line]
    assert f"| {quantized_bytes(layout, recipe.settings, recipe.packaging) / 2**30:.1f} GiB |" in row
    for _, change in choices(layout, recipe.settings, recipe.packaging):
        assert f"{'−' if change < 0 else '+'}{abs(change) / 2**30:.2f}" in row


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """A GPU of so many bytes, and so much main memory free."""
    import torch

    def put(gpu: int, free: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: "some card")
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda number=0: SimpleNamespace(total_memory=gpu)
        )
        monkeypatch.setattr(_preflight, "free_memory", lambda: free)

    return put


def test_main_memory_is_stated_with_what_lies_there_and_warned_of_where_it_is_not_free(
    original: DemoCheckpoint, tmp_path: Path, card: Callable[[int, int], None]
) -> None:
    request = QuantizeRequest(original.path, tmp_path / "out", samples=4096, max_length=2048, resume=False)
    layout = layout_for(Checkpoint.open(original.path).config)
    hidden = hidden_state_bytes(int(Checkpoint.open(original.path).text_config["hidden_size"]), 4096, 2048)
    kept, working = kept_bytes(layout, 4096 * 2048), working_bytes(layout)
    large, small = 100 * (hidden + kept + working), (hidden + working) // 2
    card(large, 1 << 50)
    found = preflight(request)
    assert dict(found.facts)["main memory"].startswith("about 6.0 GiB")
    assert not found.calibration_on_cpu
    card(small, 1 << 30)
    found = preflight(request)
    both = (6 * 2**30 + hidden + kept) / 2**30
    assert dict(found.facts)["main memory"] == f"about {both:.1f} GiB (estimate) of 1.0 GiB free"
    assert found.calibration_on_cpu
    assert any(f"about {both:.1f} GiB of main memory" in warning for warning in found.warnings)
