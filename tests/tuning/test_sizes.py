"""What a tuning of the 27B needs, from its layout."""

from __future__ import annotations

from gptq_hybrid.checkpoint import layout_for
from gptq_hybrid.recipes import TuneSettings, TuneSizes, load_recipe
from tests.checkpoint.test_layout import CONFIG_27B

GIB = 1 << 30


def sizes(settings: TuneSettings) -> TuneSizes:
    return TuneSizes.estimate(layout_for(CONFIG_27B), settings, hidden=5120, group_size=128, max_length=2048)


def test_the_recipe_fits_a_card_of_24_gb_and_takes_less_than_six_hours_there() -> None:
    settings = load_recipe("tuned").tune
    assert settings is not None
    of = sizes(settings)
    assert of.gpu < 22 * GIB
    # Both output heads in BF16, and the codes of a layer, lie there at once.
    assert of.gpu > (2 * 2 * 248_320 * 5120) + 380e6
    # 80 TFLOP/s: half of a 4090's data sheet in BF16.
    assert of.work / 80e12 < 6 * 3600
    # Inputs of 64 layers, the last layer's output and the gradient, of a step and the document that ends it.
    assert of.inputs == 2 * (settings.tokens + 2048) * 5120 * 66
    # 24.3 billion weights in groups of 128: value, gradient, two moments, best value.
    assert abs(of.trained / (20 * 24.33e9 / 128) - 1) < 0.01


def test_more_steps_take_more_time_and_no_more_memory() -> None:
    few, many = sizes(TuneSettings(steps=10)), sizes(TuneSettings(steps=1000))
    tokens = 990 * TuneSettings().tokens
    # Two operations a weight forward, twice, and four backward; the head likewise, the original's too.
    assert abs((many.work - few.work) / (tokens * 8 * (24.33e9 + 1.27e9)) - 1) < 0.01
    assert (many.gpu, many.inputs, many.states) == (few.gpu, few.inputs, few.states)
    assert sizes(TuneSettings(documents=1536)).states == 2 * few.states


def test_rounding_again_fits_a_card_of_24_gb_and_takes_less_than_six_hours_there() -> None:
    settings = load_recipe("aligned").tune
    assert settings is not None
    of = sizes(settings)
    # Five float32 matrices as wide as the MLP are the least that the solver holds: H three times, two factors.
    assert 5 * 4 * 17_408**2 < of.gpu < 22 * GIB
    assert of.work / 80e12 < 6 * 3600
    # Both models' states, and the widest mixer's outputs of both.
    assert of.aligned == 2 * 2 * settings.align_tokens * (5120 + 6144) < 24 * GIB
    assert sizes(TuneSettings()).aligned == 0
    assert sizes(TuneSettings(align_tokens=1 << 20)).aligned == 2 * of.aligned
