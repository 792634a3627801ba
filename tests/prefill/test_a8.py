"""The route ``a8``: which kernel it gets, which calls take it, and which layers keep 16 bits. No GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from vllm_qwen36_plugin.prefill import (  # noqa: E402
    banner,
    dispatch,
    eight_bit_choice,
    guard,
    humming,
    humming_8bit,
    room,
    scratch,
)
from vllm_qwen36_plugin.prefill.prepare import Preparation  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Starts  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402

from .fake_gpu import EightBit, FakeGpu  # noqa: E402
from .loading import AUTO, Model  # noqa: E402
from .made import DenseKernel  # noqa: E402

pytestmark = pytest.mark.usefixtures("clean", "kernel")

SHAPE = Shape("marlin", 256, 256, 4, 128, "bfloat16")
A8 = replace(AUTO, mode="a8")
Shown = Callable[[], str]


@pytest.fixture
def kernel(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> type[EightBit]:
    """A kernel that runs here, in the place of Humming's."""

    class Kernel(EightBit):
        missing, other_words = {}, set()

    monkeypatch.setattr(eight_bit_choice, "EightBitKernel", Kernel)
    monkeypatch.setattr(humming, "suits", lambda shape: True)
    return Kernel


def call(linear: dispatch.Linear, x: torch.Tensor, layer: int = 0) -> torch.Tensor:
    """One layer's product, as the op computes it."""
    words, scales = _held[layer]
    return dispatch.w4a16_linear(x, [scales, words], None, None, linear.shape.key, linear.shape.n)


_held: list[tuple[torch.Tensor, torch.Tensor]] = []


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dispatch.Linear]]:
    """Loads layers, and keeps what they hold for `call`."""
    _held.clear()
    model = Model(A8)
    enter = Preparation.enter

    def keep(self: Preparation, linear: dispatch.Linear, tensors: Any, *rest: Any) -> None:
        _held.append((tensors[1], tensors[0]))
        enter(self, linear, tensors, *rest)

    monkeypatch.setattr(Preparation, "enter", keep)
    monkeypatch.setattr(dispatch.Linear, "by_vllm", _dense)
    yield lambda layers=1: [model.load(SHAPE) for _ in range(layers)][-1]
    _held.clear()


def _dense(self: dispatch.Linear, x: torch.Tensor, tensors: Any, bias: Any = None) -> torch.Tensor:
    layer = torch.nn.Module()
    layer.scales, layer.words = tensors
    return DenseKernel(SHAPE).apply_weights(layer, x)


@contextmanager
def prompts(monkeypatch: pytest.MonkeyPatch, decoding: int = 0) -> Iterator[None]:
    """A step with requests whose first rows are of decoding."""
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "_in_a_step", lambda: True)
        patch.setattr(dispatch, "before_prompts", lambda tokens: min(decoding, tokens))
        yield


def rows(count: int, outliers: float = 1.0) -> torch.Tensor:
    x = torch.randn(count, SHAPE.k, generator=torch.Generator().manual_seed(count))
    x[:, 5::128] *= outliers
    return x.bfloat16()


def test_int8_in_groups_is_taken_and_starts_where_it_wins(
    gpu: FakeGpu, shown: Shown, loaded: Callable[..., dispatch.Linear]
) -> None:
    linear = loaded()
    assert linear.routes == ("a8", "exact")
    assert linear.eight_bit is not None
    assert linear.eight_bit.name == "int8 g128"
    assert linear.starts == Starts(512, a8=256)
    assert [linear.route_for(tokens) for tokens in (255, 256, 9999)] == [None, "a8", "a8"]
    assert shown() == ""
    line = banner.table_line([linear], A8, "measured")
    assert "256x256 a8 (int8) from 256 and exact from 512" in line


def test_auto_takes_no_activations_of_eight_bits_and_says_where_they_were_measured_faster(
    gpu: FakeGpu,
) -> None:
    linear = Model().load(SHAPE)
    assert linear.routes == ("exact",)
    assert linear.eight_bit is None
    assert "a8" not in banner.table_line([linear], AUTO, "measured")
    # As a profile has it that `qwen36 tune prefill` or a start with the option wrote.
    linear.starts = replace(linear.starts, a8=300)
    assert linear.route_for(9999) == "exact"
    assert banner.table_line([linear], AUTO, "").endswith("; prefill=a8 was faster from 300 tokens on")
    assert "was faster" not in banner.table_line([linear], replace(AUTO, mode="exact"), "")


@pytest.mark.parametrize(
    "trouble",
    [
        lambda kernel: kernel.missing.update({"int8 g128": RuntimeError("no such instruction")}),
        lambda kernel: kernel.missing.update({"int8 g128": TimeoutError()}),
        lambda kernel: kernel.other_words.add("int8 g128"),
    ],
)
def test_where_int8_does_not_work_e4m3_does(
    shown: Shown, loaded: Callable[..., dispatch.Linear], kernel: type[EightBit], trouble: Any
) -> None:
    trouble(kernel)
    linear = loaded()
    assert linear.eight_bit is not None
    assert linear.eight_bit.name == "e4m3 g128"
    assert shown() == ""
    # Nothing is watched: it needs no guard.
    assert dispatch.guard().errors() == {}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda out: out * 1.02, "1 tokens are off by"),
        (lambda out: out.roll(1, dims=1), "1 tokens are off by"),
        (
            lambda out: torch.where(torch.arange(out.shape[0])[:, None] == 128, 0, out),
            "129 tokens are off by",
        ),
        (lambda out: out + 0.02 * out.std(dim=1, keepdim=True), "1 tokens are off by"),
    ],
)
def test_the_self_test_catches_a_wrong_kernel(
    shown: Shown, loaded: Callable[..., dispatch.Linear], kernel: type[EightBit], wrong: Any, text: str
) -> None:
    kernel.wrong = staticmethod(wrong)
    linear = loaded()
    assert linear.routes == ("exact",)
    assert linear.eight_bit is None
    (line,) = shown().splitlines()
    assert line.startswith("WARNING vllm-qwen36-plugin: prefill=a8 keeps 16 bits for 256x256: int8 g128: ")
    assert text in line
    assert "; e4m3 g128: " in line


def test_a_layer_that_fails_later_turns_it_off_for_the_shape(shown: Shown, kernel: type[EightBit]) -> None:
    model = Model(A8)
    for _ in range(2):
        model.preparation.expect(SHAPE)
    assert model.load(SHAPE).routes == ("a8", "exact")
    kernel.wrong = staticmethod(lambda out: out * 1.5)
    assert model.load(SHAPE).routes == ("exact",)
    assert f"a8 is off for {SHAPE.key}, layer 2 of 2: 1 tokens are off by" in shown()


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        (replace(SHAPE, layout="machete"), "as Marlin holds them"),
        (replace(SHAPE, bits=8), "4-bit"),
        (replace(SHAPE, group_size=32), "groups of 128"),
        (replace(SHAPE, group_size=-1), "groups of 128"),
    ],
)
def test_other_weights_keep_sixteen_bits_with_a_reason(
    gpu: FakeGpu, shown: Shown, shape: Shape, why: str
) -> None:
    linear = Model(A8).load(shape)
    assert linear.routes == ("exact",)
    (line,) = shown().splitlines()
    assert why in line


def test_without_humming_it_steps_aside_with_one_reason(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(humming, "suits", lambda shape: False)
    model = Model(A8)
    assert model.load(SHAPE).routes == model.load(SHAPE).routes == ("exact",)
    (line,) = shown().splitlines()
    assert "humming-kernels" in line


def test_a_scratch_that_is_too_small_says_how_much_is_needed(gpu: FakeGpu, shown: Shown) -> None:
    linear = Model(replace(A8, scratch_bytes=SHAPE.k * SHAPE.n // 2 - 1)).load(SHAPE)
    assert "a8" not in linear.routes
    assert "256 x 256 in 4 bits needs 1 MiB of scratch" in shown()


def test_scratch_holds_all_words_and_no_more_than_a_route_takes(gpu: FakeGpu) -> None:
    words = SHAPE.k * SHAPE.n // 2
    size = 1 << 30
    assert room.scratch_bytes(SHAPE, ("a8",), 2, size) == words
    assert room.scratch_bytes(SHAPE, ("a8", "exact"), 2, size) == 4 * words
    assert room.scratch_bytes(SHAPE, (), 2, size) == 0
    assert room.scratch_bytes(SHAPE, ("a8",), 2, words - 1) == 0


def test_the_products_are_those_of_rounded_activations_and_exact_weights(
    loaded: Callable[..., dispatch.Linear],
) -> None:
    linear = loaded()
    x = rows(300)
    exact = call(linear, x[:1].expand(2, -1))  # few tokens: the stock kernel
    assert linear.served == {"stock": 1}
    result = call(linear, x)
    assert linear.served == {"stock": 1, "a8": 1}
    reference = _dense(linear, x, (_held[0][1], _held[0][0]))
    assert 0.001 < float((result - reference).float().norm() / reference.float().norm()) < 0.01
    torch.testing.assert_close(exact, reference[:1].expand(2, -1))


def test_rows_of_decoding_never_take_eight_bits(
    loaded: Callable[..., dispatch.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the kernel itself, whatever shares the step."""
    linear = loaded()
    dispatch.guard()._open.clear()
    dispatch.pace().cut_from = 0
    assert linear.eight_bit is not None
    seen: list[int] = linear.eight_bit.rows  # type: ignore[attr-defined]
    for tokens, decoding in ((300, 300), (900, 900), (3000, 2990), (2000, 3), (2000, 0), (1, 1), (8192, 64)):
        seen.clear()
        with prompts(monkeypatch, decoding):
            call(linear, rows(tokens))
        assert sum(seen) in (0, tokens - decoding), (tokens, decoding)
        if tokens - decoding < 256:
            assert not seen
    assert seen == [8192 - 64]
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "_recorded", lambda x: True)
        seen.clear()
        call(linear, rows(2000))
        assert not seen


# The guard.


def test_a_layer_keeps_sixteen_bits_until_it_is_decided(
    loaded: Callable[..., dispatch.Linear], monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    linear = loaded(2)
    decided: list[str] = []
    dispatch.guard().settled = lambda: decided.append(banner.guard_line(dispatch.guard()))
    for number in range(guard.PASSES):
        with prompts(monkeypatch):
            watched = call(linear, rows(300 + number))
            call(linear, rows(300 + number, outliers=300.0), layer=1)
        torch.testing.assert_close(watched, _dense(linear, rows(300 + number), (_held[0][1], _held[0][0])))
    assert "a8" not in linear.served
    for layer, way in ((0, "a8"), (1, "stock")):
        linear.served.clear()
        with prompts(monkeypatch):
            call(linear, rows(300), layer=layer)
        assert dict(linear.served) == {way: 1}
    assert dispatch.guard().kept() == ["layer 2"]
    errors = dispatch.guard().errors()
    assert errors["layer 1"] is not None
    assert errors["layer 2"] is not None
    assert errors["layer 1"] < guard.LIMIT < errors["layer 2"]
    (line,) = decided
    assert "1 of 2 linears keep activations of 16 bits: layer 2;" in line


def test_it_sees_rows_of_prompts_alone_and_few_of_them(
    loaded: Callable[..., dispatch.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = loaded()
    assert linear.eight_bit is not None
    seen: list[int] = linear.eight_bit.rows  # type: ignore[attr-defined]
    seen.clear()
    x = rows(1000)
    x[:10] *= float("nan")  # of decoding
    with prompts(monkeypatch, decoding=10):
        call(linear, x)
    assert seen == [124]
    (layer,) = dispatch.guard()._layers.values()
    assert layer.sums is not None
    assert layer.sums[1] == 124


def test_rows_that_are_no_numbers_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher, words = guard.Guard(), torch.zeros(1, dtype=torch.int32)
    watcher.watch(words, "it")
    x = torch.ones(4, 4)
    x[1], x[2] = float("nan"), 0.0
    for _ in range(guard.PASSES):
        watcher.saw(words, x, x, lambda part: part * 1.01)
    assert not watcher.watches(words)
    assert watcher.errors()["it"] == pytest.approx(0.01, rel=1e-3)
    assert not watcher.keeps(words)


def test_without_any_number_it_goes_on_watching() -> None:
    watcher, words = guard.Guard(), torch.zeros(1, dtype=torch.int32)
    watcher.watch(words, "it")
    for _ in range(guard.PASSES):
        watcher.saw(words, torch.zeros(2, 4), torch.zeros(2, 4), lambda part: part)
    assert not watcher.watches(words)
    assert watcher.watches(words)
    assert watcher.errors() == {"it": None}


def test_trials_without_requests_take_the_route_and_teach_the_guard_nothing(
    loaded: Callable[..., dispatch.Linear],
) -> None:
    linear = loaded()
    for _ in range(guard.PASSES + 1):
        call(linear, torch.zeros(300, SHAPE.k, dtype=torch.bfloat16))
    assert dict(linear.served) == {"a8": guard.PASSES + 1}
    assert dispatch.guard().errors() == {"layer 1": None}


# What is asked of Humming.


def test_only_ranges_of_many_tokens_are_compiled_and_the_first_takes_the_rest() -> None:
    ranges = [[0, 8, {"a": 1}], [8, 96, {"a": 2}], [96, 144, {"block": (64, 256)}], [144, 1 << 30, {"a": 4}]]
    kept = humming_8bit.many_tokens(ranges)
    assert kept == [[0, 144, {"block": (64, 256)}], [144, 1 << 30, {"a": 4}]]
    assert ranges[2][0] == 96
    assert isinstance(kept[0][2]["block"], tuple)


def test_each_kind_of_a_shape_is_compiled_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Kind(humming_8bit.Kind):
        def compile(self, shape: Shape, index: int) -> Any:
            asked.append((self.dtype, shape, index))
            return torch.tensor([index])

    monkeypatch.setattr(humming, "_configs", {})
    monkeypatch.setattr(humming, "_waited", [0.0])
    device = torch.device("cuda", 1)
    for kind in (Kind("int8", 128), Kind("float8e4m3", 128), Kind("int8", 128)):
        assert humming.compiled(SHAPE, device, kind).tolist() == [1]
    assert asked == [("int8", SHAPE, 1), ("float8e4m3", SHAPE, 1)]


def test_words_share_the_scratch_and_are_forgotten_with_it() -> None:
    device = torch.device("cpu")
    with pytest.raises(KeyError):
        scratch.words(device, 128, 256)
    scratch.reserve(device, 128 * 256 // 2)
    held = scratch.words(device, 128, 256)
    assert (held.shape, held.dtype) == ((4, 1024), torch.int32)
    assert scratch.words(device, 128, 256) is held
    scratch.reserve(device, 128 * 256)
    assert scratch.words(device, 128, 256).data_ptr() != held.data_ptr()
