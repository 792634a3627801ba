"""Each route against the weights as they were loaded: what passes, and what is named where it does not."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from vllm_qwen36_plugin.prefill import dispatch, routes, scratch, selftest  # noqa: E402
from vllm_qwen36_plugin.prefill.expand import reference  # noqa: E402
from vllm_qwen36_plugin.prefill.selftest import Original, problem_with  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402

from .fake_gpu import FakeGpu  # noqa: E402
from .made import DenseKernel, Weight, same  # noqa: E402

pytestmark = pytest.mark.usefixtures("gpu")

CPU = torch.device("cpu")
SHAPES = [
    Shape("marlin", 128, 320, 4, 32, "bfloat16"),
    Shape("marlin", 128, 192, 8, -1, "float16"),
    Shape("machete", 128, 256, 4, 64, "float16"),
    Shape("machete", 128, 256, 8, 128, "bfloat16"),
]
SHAPE = SHAPES[0]


@pytest.fixture(autouse=True)
def two_tiles_at_least(clean: None) -> None:
    scratch.reserve(CPU, 128 * 128 * 2)


def problem(
    route: Any, stored: Weight, loaded: Weight | None = None, fp8: torch.Tensor | None = None
) -> str | None:
    """Of a layer that holds ``stored`` where ``loaded`` was loaded."""
    loaded = stored if loaded is None else loaded
    layer = torch.nn.Module()
    linear = dispatch.Linear(
        stored.shape, DenseKernel(stored.shape), ("scales", "words"), 1, 0, weakref.ref(layer)
    )
    original = Original.copy_of(loaded.words(), loaded.scales)
    scales = routes.fp8_scales(stored.scales, stored.shape.bits) if fp8 is None else fp8
    return problem_with(route, linear, original, [stored.stock_scales(), stored.stock_words()], scales)


def unpacks_wrong(column: int) -> str:
    return f"column {column} does not unpack to the checkpoint's numbers"


@pytest.mark.parametrize("route", ["exact", "fp8"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.key)
def test_what_was_loaded_passes(shape: Shape, route: str) -> None:
    assert problem(route, Weight.random(shape)) is None


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.key)
@pytest.mark.parametrize("column", [0, 63, 128, 191])
def test_one_bit_of_one_value_is_named_by_its_column(shape: Shape, column: int) -> None:
    loaded = Weight.random(shape)
    damaged = loaded.with_code(101, column, int(loaded.codes[101, column]) ^ 1)
    assert problem("exact", damaged, loaded) == unpacks_wrong(column)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.key)
def test_a_wrong_scale_is_named_by_its_column(shape: Shape) -> None:
    loaded = Weight.random(shape)
    scales = loaded.scales.clone()
    scales[-1, 150] = -scales[-1, 150]
    assert problem("exact", replace(loaded, scales=scales), loaded) == unpacks_wrong(150)


def test_swapped_columns_are_named_by_the_first() -> None:
    loaded = Weight.random(SHAPE)
    order = torch.arange(SHAPE.n)
    order[[70, 260]] = order[[260, 70]]
    swapped = Weight(SHAPE, loaded.codes[:, order], loaded.scales[:, order])
    assert problem("exact", swapped, loaded) == unpacks_wrong(70)


def test_swapped_groups_do_not_pass() -> None:
    loaded = Weight.random(SHAPE)
    assert problem("exact", replace(loaded, scales=loaded.scales.flip(0)), loaded) == unpacks_wrong(0)


def test_columns_are_named_right_in_any_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_COLUMNS", 48)
    loaded = Weight.random(SHAPE)
    for column in (0, 47, 48, 127, 128, 200, 319):
        damaged = loaded.with_code(7, column, int(loaded.codes[7, column]) ^ 8)
        assert problem("exact", damaged, loaded) == unpacks_wrong(column)
    assert problem("exact", loaded) is None


def test_a_weight_in_another_kernels_order_does_not_pass() -> None:
    loaded = Weight.random(Shape("marlin", 128, 256, 4, 64, "bfloat16"))
    taken_for = replace(loaded, shape=replace(loaded.shape, layout="machete"))
    layer = torch.nn.Module()
    linear = dispatch.Linear(taken_for.shape, None, ("scales", "words"), 1, 0, weakref.ref(layer))
    original = Original.copy_of(loaded.words(), loaded.scales)
    text = problem_with("exact", linear, original, [loaded.stock_scales(), loaded.stock_words()], None)
    assert text is not None
    assert "does not unpack" in text


@pytest.mark.parametrize("route", ["exact", "fp8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_in_the_checkpoint_is_none_here_either(route: str, bad: float) -> None:
    scales = Weight.random(SHAPE).scales
    scales[1, 300] = bad
    assert problem(route, Weight.random(SHAPE, scales=scales)) is None


def test_a_nan_of_another_kind_is_the_same_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU makes one of its own where torch on a CPU keeps the one it got."""

    def with_other_nans(words: Any, scales: Any, out: torch.Tensor, *rest: Any, **how: Any) -> None:
        reference(words, scales, out, *rest, **how)
        out.view(torch.int16)[out.isnan()] = 0x7FFF

    monkeypatch.setattr(routes, "expand", with_other_nans)
    scales = Weight.random(SHAPE).scales
    scales[1, 300] = float("nan")
    assert problem("exact", Weight.random(SHAPE, scales=scales)) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_a_number_in_the_checkpoint_must_be_one_here(bad: float) -> None:
    loaded = Weight.random(SHAPE)
    scales = loaded.scales.clone()
    scales[1, 300] = bad
    assert problem("exact", replace(loaded, scales=scales), loaded) == unpacks_wrong(300)
    assert problem("exact", loaded, replace(loaded, scales=scales)) == unpacks_wrong(300)


@pytest.mark.parametrize("route", ["exact", "fp8"])
def test_a_weight_of_zeros_passes(route: str) -> None:
    weight = Weight.random(SHAPE)
    assert problem(route, replace(weight, scales=weight.scales * 0)) is None


def test_a_wrong_product_of_right_weights_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = dispatch.exact
    most = {1: 1.0, 129: 1.0, 517: 1.05}
    monkeypatch.setattr(dispatch, "exact", lambda x, *rest: stock(x, *rest) * most[len(x)])
    text = problem("exact", Weight.random(SHAPE))
    assert text is not None
    assert text.startswith("517 tokens are off by ")


def test_a_product_that_is_no_number_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dispatch, "exact", lambda x, weight, shape: x.new_full((len(x), shape.n), float("nan"))
    )
    text = problem("exact", Weight.random(SHAPE))
    assert text is not None
    assert text.startswith("1 tokens are off by nan")


@pytest.mark.parametrize("wrong", [lambda f: f.flip(0), lambda f: f.flip(1), lambda f: f * 1.2])
def test_wrong_fp8_scales_do_not_pass(wrong: Any) -> None:
    weight = Weight.random(SHAPE)
    weight = replace(weight, scales=weight.scales * torch.linspace(0.1, 10, SHAPE.n).bfloat16())
    right = routes.fp8_scales(weight.scales, 4)
    assert problem("fp8", weight, fp8=right) is None
    text = problem("fp8", weight, fp8=wrong(right).contiguous())
    assert text is not None
    assert "tokens are off by" in text


def test_tokens_quantized_with_a_scale_too_coarse_do_not_pass(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def coarse(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, scales = gpu.quantize_tokens(x / 2**14)
        return tokens, scales * 2**14 * 1.1

    monkeypatch.setattr(routes, "quantize_tokens", coarse)
    text = problem("fp8", Weight.random(SHAPE))
    assert text is not None
    assert "tokens are off by" in text


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda x: x.clamp(-448, 448), "massive activation"),
        (lambda x: x.clamp(-200, 200), "large channels"),
    ],
)
def test_what_only_outliers_show_does_not_pass(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, wrong: Any, named: str
) -> None:
    stock = dispatch.exact
    monkeypatch.setattr(dispatch, "exact", lambda x, *rest: stock(wrong(x), *rest))
    text = problem("exact", Weight.random(SHAPE))
    assert text is not None
    assert named in text


def test_one_wrong_token_of_many_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = dispatch.exact

    def last_is_off(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        out = stock(x, *rest)
        out[-1] *= 1.05 if len(x) == 517 else 1
        return out

    monkeypatch.setattr(dispatch, "exact", last_is_off)
    text = problem("exact", Weight.random(SHAPE))
    assert text is not None
    assert text.startswith("517 tokens are off by ")


def test_the_original_is_a_copy() -> None:
    """The stock kernel repacks in place."""
    weight = Weight.random(SHAPE)
    words, scales = weight.words(), weight.scales.clone()
    original = Original.copy_of(words, scales)
    words.zero_()
    scales.zero_()
    assert same(original.dense(64, 100, 4), weight.dense()[64:164].bfloat16())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.key)
def test_the_kernel_itself_passes_and_is_looked_at(
    interpreted: Any, monkeypatch: pytest.MonkeyPatch, shape: Shape
) -> None:
    shape = replace(shape, n=128)
    monkeypatch.setattr(routes, "expand", interpreted.expand)
    monkeypatch.setattr(selftest, "TOKENS", (3,))
    loaded = Weight.random(shape)
    assert problem("exact", loaded) is None
    assert problem("fp8", loaded) is None
    damaged = loaded.with_code(99, 77, int(loaded.codes[99, 77]) ^ 1)
    assert problem("exact", damaged, loaded) == unpacks_wrong(77)
