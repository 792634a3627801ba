"""Which routes a loaded layer gets, one model after another, and what is logged about it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from vllm_qwen36_plugin.errors import CompatError  # noqa: E402
from vllm_qwen36_plugin.prefill import dispatch, measure, prepare, routes, scratch  # noqa: E402
from vllm_qwen36_plugin.prefill.prepare import Preparation  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Starts  # noqa: E402
from vllm_qwen36_plugin.prefill.settings import Settings  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402
from vllm_qwen36_plugin.upstream import decode_rows, scaled_mm  # noqa: E402

from .fake_gpu import FakeGpu  # noqa: E402
from .loading import AUTO, OTHER, SHAPE, Model  # noqa: E402
from .made import Weight  # noqa: E402

pytestmark = pytest.mark.usefixtures("clean")

Shown = Callable[[], str]
FP8 = replace(AUTO, mode="fp8")


def test_layers_of_a_shape_after_the_first_are_taken_as_known(gpu: FakeGpu, shown: Shown) -> None:
    model = Model(FP8)
    first = model.load()
    first.served["stock"] += 3
    second = model.load(damaged=True)  # nobody looks
    assert (second.starts, second.routes, second.served) == (first.starts, first.routes, first.served)
    assert second.routes == ("fp8", "exact")
    assert len(gpu.measured) == 1
    assert shown() == ""


def test_a_weight_that_does_not_unpack_to_what_was_loaded_keeps_the_stock_kernel(
    gpu: FakeGpu, shown: Shown
) -> None:
    linear = Model().load(damaged=True)
    assert (linear.routes, linear.starts) == ((), Starts())
    assert linear.route_for(9999) is None
    assert gpu.measured == []
    (line,) = shown().splitlines()
    assert line == (
        f"WARNING vllm-qwen36-plugin: exact is off for {SHAPE.key}: "
        "column 77 does not unpack to the checkpoint's numbers"
    )


@pytest.mark.parametrize("broken", ["exact", "fp8"])
def test_one_route_that_fails_its_test_leaves_the_other(
    gpu: FakeGpu, shown: Shown, monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    monkeypatch.setattr(dispatch, broken, lambda x, weight, shape, *_: x.new_zeros(len(x), shape.n))
    linear = Model(FP8).load()
    left = {"exact": "fp8", "fp8": "exact"}[broken]
    assert linear.routes == (left,)
    assert linear.route_for(9999) == left
    assert gpu.measured == [(SHAPE, list(measure.TOKENS), [left])]
    (line,) = shown().splitlines()
    assert line.startswith(
        f"WARNING vllm-qwen36-plugin: {broken} is off for {SHAPE.key}: 1 tokens are off by "
    )


def test_fp8_may_have_each_gemm_that_passes(gpu: FakeGpu, shown: Shown) -> None:
    gpu.gemms = ("vllm", "torch")
    model = Model(FP8)
    first, second = model.load(), model.load()
    assert first is not second
    assert first.gemms == second.gemms == ("vllm", "torch")
    assert shown() == ""


@pytest.mark.parametrize(("off", "left"), [("torch", "vllm"), ("vllm", "torch")])
def test_a_gemm_that_fails_its_test_leaves_fp8_the_other(
    gpu: FakeGpu, shown: Shown, off: str, left: str
) -> None:
    gpu.gemms, gpu.off = ("vllm", "torch"), (off,)
    linear = Model(FP8).load()
    assert linear.routes == ("fp8", "exact")
    assert (linear.gemms, linear.starts.fp8_gemm) == ((left,), left)
    (line,) = shown().splitlines()
    by = "" if off == "vllm" else " by torch's GEMM"
    assert line.startswith(
        f"WARNING vllm-qwen36-plugin: fp8{by} is off for {SHAPE.key}: 1 tokens are off by "
    )


def test_fp8_without_a_sound_gemm_is_off(gpu: FakeGpu, shown: Shown) -> None:
    gpu.gemms = gpu.off = ("vllm", "torch")
    linear = Model(FP8).load()
    assert linear.routes == ("exact",)
    assert len(shown().splitlines()) == 2


def test_a_route_that_raises_is_off_too(gpu: FakeGpu, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(routes, "expand", broken)
    assert Model().load().routes == ()
    assert f"exact is off for {SHAPE.key}: RuntimeError('no such instruction')" in shown()


def test_a_scratch_too_small_says_how_much_is_needed(gpu: FakeGpu, shown: Shown) -> None:
    assert Model(replace(AUTO, scratch_bytes=1000)).load().routes == ()
    assert "64 columns of 128 values need 16,384 bytes; there are 1,000" in shown()


def test_scratch_is_there_before_anything_is_measured_and_stays(gpu: FakeGpu) -> None:
    model = Model()
    model.load(SHAPE)
    assert scratch.reserved(torch.device("cpu")) == 128 * 128 * 2
    tile = scratch.tiles(torch.device("cpu"), 128, 128, torch.bfloat16)[0]
    model.load(OTHER)  # a smaller one
    assert scratch.tiles(torch.device("cpu"), 128, 128, torch.bfloat16)[0] is tile
    model.load(Shape("marlin", 128, 256, 4, 32, "bfloat16"))
    assert scratch.reserved(torch.device("cpu")) == 256 * 128 * 2


def test_scratch_is_no_larger_than_the_user_says(gpu: FakeGpu) -> None:
    linear = Model(replace(AUTO, scratch_bytes=64 * 128 * 2)).load(SHAPE)
    assert linear.routes == ("exact",)
    assert scratch.reserved(torch.device("cpu")) == 64 * 128 * 2


WIDE = Shape("marlin", 128, 512, 4, 32, "bfloat16")


def test_fp8_scales_of_all_layers_come_out_of_what_the_user_set(gpu: FakeGpu) -> None:
    budget = 256 * 128 * 2
    exact, fp8 = (Model(replace(settings, scratch_bytes=budget)) for settings in (AUTO, FP8))
    for model in (exact, fp8):
        for _ in range(4):
            model.preparation.expect(WIDE)
    exact.load(WIDE)
    assert scratch.reserved(torch.device("cpu")) == budget
    scratch.release()
    assert fp8.load(WIDE).routes == ("fp8", "exact")
    scales = fp8.scales[0]
    assert scales is not None
    scale_bytes = 4 * scales.numel() * scales.element_size()
    # With what a draft's layer may add.
    assert 0 < budget - scratch.reserved(torch.device("cpu")) - scale_bytes * 17 // 16 < budget // 2


def test_the_buffer_holds_the_largest_part_of_either_route(gpu: FakeGpu) -> None:
    """Here one in e4m3: a part in BF16 is of whole tiles of 256 columns, 512 of the 544 that would fit."""
    shape = Shape("marlin", 128, 1088, 4, 32, "bfloat16")
    Model(replace(FP8, scratch_bytes=1088 * 128)).load(shape)
    assert scratch.reserved(torch.device("cpu")) == 1088 * 128
    assert len(scratch.tiles(torch.device("cpu"), 128, 1088, torch.float8_e4m3fn)) == 1
    assert len(scratch.tiles(torch.device("cpu"), 128, 1088, torch.bfloat16)) == 3


def test_scales_take_half_of_it_at_most(gpu: FakeGpu) -> None:
    model = Model(replace(FP8, scratch_bytes=256 * 128 * 2))
    for _ in range(100):
        model.preparation.expect(WIDE)
    assert model.load(WIDE).routes == ("fp8", "exact")
    assert scratch.reserved(torch.device("cpu")) == 128 * 128 * 2


def test_no_scales_are_kept_by_a_gpu_that_has_no_fp8(gpu: FakeGpu) -> None:
    gpu.fp8 = False
    model = Model(replace(FP8, scratch_bytes=256 * 128 * 2))
    model.preparation.expect(WIDE)
    assert model.load(WIDE).routes == ("exact",)
    assert scratch.reserved(torch.device("cpu")) == 256 * 128 * 2


def test_memory_that_no_route_takes_is_given_back_when_the_last_layer_is_there(gpu: FakeGpu) -> None:
    """Over Machete, or on a card whose Marlin is as fast as a dense GEMM."""
    cpu, model = torch.device("cpu"), Model(FP8, max_tokens=128)  # beyond which routes would win
    for shape in (SHAPE, SHAPE, OTHER):
        model.preparation.expect(shape)
    assert model.load(SHAPE).starts == Starts()
    assert scratch.reserved(cpu) > 0
    second = model.load(SHAPE)
    assert scratch.reserved(cpu) > 0
    model.load(OTHER)
    assert scratch.reserved(cpu) == 0
    assert second.routes == ("fp8", "exact")  # tested, and not taken
    # Of the first layer of each shape, which was measured with them, and no other.
    assert [scales is not None for scales in model.scales] == [True, False, True]


def test_what_the_largest_shape_needs_is_kept_if_a_route_takes_it_and_no_more(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, model = torch.device("cpu"), Model(AUTO)
    shapes = (WIDE, SHAPE)
    for shape in shapes:
        model.preparation.expect(shape)
    starts = {WIDE: Starts(), SHAPE: Starts(exact=512)}
    monkeypatch.setattr(Preparation, "starts_for", lambda self, linear, *_: starts[linear.shape])
    model.load(WIDE)
    assert scratch.reserved(cpu) == 512 * 128 * 2
    model.load(SHAPE)
    assert scratch.reserved(cpu) == 128 * 128 * 2
    assert scratch.tiles(cpu, 128, 128, torch.bfloat16)[0].last == 128


def test_a_draft_that_is_loaded_later_gets_its_own(gpu: FakeGpu) -> None:
    cpu, model = torch.device("cpu"), Model(AUTO)
    model.preparation.expect(SHAPE)
    model.load(SHAPE)
    assert scratch.reserved(cpu) == 128 * 128 * 2
    model.preparation.expect(WIDE)
    model.load(WIDE)
    assert scratch.reserved(cpu) == 512 * 128 * 2


def test_layers_in_the_middle_and_at_the_end_are_tested_too(gpu: FakeGpu, shown: Shown) -> None:
    model = Model(FP8)
    for _ in range(5):
        model.preparation.expect(SHAPE)
    tested = []
    for layer in range(5):
        tested.append(model.preparation.tests(SHAPE))
        linear = model.load(damaged=layer == 4)
    assert tested == [True, False, True, False, True]
    # Of a wrong code `fp8` cannot say that it is wrong: it rounds.
    assert linear.routes == ("fp8",)
    (line,) = shown().splitlines()
    assert line == (
        f"WARNING vllm-qwen36-plugin: exact is off for {SHAPE.key}, layer 5 of 5: "
        "column 77 does not unpack to the checkpoint's numbers"
    )
    assert dispatch.get(SHAPE.key) is linear


def test_without_word_of_which_rows_are_prompts_there_are_no_eight_bits(
    gpu: FakeGpu, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved() -> None:
        raise CompatError("it moved")

    monkeypatch.setattr(decode_rows, "publish_rows", moved)
    assert Model(AUTO).load().routes == ("exact",)
    assert shown() == ""
    model = Model(FP8)
    assert model.load(SHAPE).routes == model.load(OTHER).routes == ("exact",)
    (line,) = shown().splitlines()
    assert "8-bit activations are off" in line
    assert "it moved" in line


def test_exact_sums_in_float32_and_leaves_torchs_switch_as_it_was(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    matmul, multiply = torch.backends.cuda.matmul, torch.mm

    def mm(*args: Any, **kwargs: Any) -> Any:
        seen.append(
            (matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction)
        )
        return multiply(*args, **kwargs)

    monkeypatch.setattr(torch, "mm", mm)
    for dtype in ("float16", "bfloat16"):
        shape = replace(SHAPE, dtype=dtype)
        weight = Weight.random(shape)
        scratch.reserve(torch.device("cpu"), 128 * 128 * 2)
        x = torch.ones(3, 128, dtype=getattr(torch, dtype))
        routes.exact(x, routes.Weight(weight.stock_words(), weight.stock_scales()), shape)
    assert seen == [(False, True), (True, False)]
    assert matmul.allow_fp16_reduced_precision_reduction
    assert matmul.allow_bf16_reduced_precision_reduction


def test_fp8_asked_for_on_a_gpu_that_has_none_is_said_once(gpu: FakeGpu, shown: Shown) -> None:
    gpu.fp8 = False
    model = Model(FP8)
    assert model.load(SHAPE).routes == ("exact",)
    assert model.load(OTHER).routes == ("exact",)
    (line,) = shown().splitlines()
    assert line.startswith("WARNING vllm-qwen36-plugin: prefill=fp8 needs a GPU that multiplies e4m3")


@pytest.mark.parametrize(("capability", "possible"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_is_for_gpus_that_multiply_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], possible: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(scaled_mm, "check", lambda: None)
    assert prepare.fp8_possible(torch.device("cuda", 0)) is possible
    assert prepare.fp8_possible(torch.device("cpu")) is False


def test_a_vllm_without_its_fp8_kernel_has_no_fp8(monkeypatch: pytest.MonkeyPatch, shown: Shown) -> None:
    def lacks() -> None:
        raise CompatError("vLLM has no torch.ops._C.cutlass_scaled_mm")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(scaled_mm, "check", lacks)
    assert prepare.fp8_possible(torch.device("cuda", 0)) is False
    assert "vLLM has no torch.ops._C.cutlass_scaled_mm" in shown()


@pytest.mark.parametrize(
    "shape", [SHAPE, OTHER, Shape("machete", 64, 128, 4, -1, "bfloat16")], ids=lambda s: s.key
)
def test_fp8_scales_are_by_column_whatever_the_stock_kernel_made_of_their_order(
    gpu: FakeGpu, shape: Shape
) -> None:
    weight = Weight.random(shape)
    layer = torch.nn.Module()
    linear = dispatch.Linear(shape, None, ("scales", "words"), 1, 0, weakref.ref(layer))
    tensors = [weight.stock_scales(), weight.stock_words()]
    scales = Model(FP8).preparation.fp8_scales(linear, tensors)
    assert scales is not None
    assert scales.is_contiguous()
    assert torch.equal(scales, routes.fp8_scales(weight.scales, shape.bits))
    assert Model(AUTO).preparation.fp8_scales(linear, tensors) is None


def test_both_routes_give_the_product_a_part_of_the_columns_at_a_time(gpu: FakeGpu) -> None:
    shape = Shape("marlin", 128, 320, 4, 32, "bfloat16")
    weight = Weight.random(shape)
    scratch.reserve(torch.device("cpu"), 64 * 128 * 2)
    x = torch.randn(17, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.float() @ weight.dense().t()
    packed = routes.Weight(weight.stock_words(), weight.stock_scales(), routes.fp8_scales(weight.scales, 4))
    for route, most in ((routes.exact, 0.01), (routes.fp8, 0.06)):
        result = route(x, packed, shape).float()
        assert float((result - expected).norm() / expected.norm()) < most, route
    with pytest.raises(ValueError, match="no FP8 scales"):
        routes.fp8(x, routes.Weight(packed.words, packed.scales), shape)


@pytest.mark.parametrize("bits", [4, 8])
def test_fp8_scales_make_the_largest_possible_value_the_largest_e4m3(bits: int) -> None:
    scales = torch.tensor([[0.01, -0.02, 0.0, 1e-38], [0.03, 0.01, 0.0, 0.0]])
    inverse, column = routes.fp8_scales(scales, bits)
    most = scales.abs().amax(dim=0) * (1 << (bits - 1))
    assert torch.allclose(most * inverse, torch.tensor([448.0, 448.0, 0.0, most[3] * 2.0**100]))
    assert torch.allclose(inverse * column, torch.ones(4))
    assert bool(inverse.isfinite().all())


# One model after another.


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which model vLLM is loading."""
    config = pytest.importorskip("vllm.config")

    def load(options: dict[str, Any] | None, max_tokens: int | None = 2048) -> None:
        current = None
        if options is not None:
            scheduler = SimpleNamespace(max_num_batched_tokens=max_tokens)
            current = SimpleNamespace(additional_config={"qwen36": options}, scheduler_config=scheduler)
        monkeypatch.setattr(config, "get_current_vllm_config_or_none", lambda: current)

    return load


@pytest.mark.engine  # no engine, but vLLM is imported: some seconds
def test_a_model_with_the_same_settings_is_the_same_preparation(loading: Callable[..., None]) -> None:
    loading({"prefill": "fp8", "prefill_scratch_mib": 64})
    first = Preparation.current()
    assert (first.settings, first.max_tokens) == (Settings("fp8", 64 << 20, None), 2048)
    assert Preparation.current() is first
    for changed in (
        ({"prefill": "fp8", "prefill_scratch_mib": 65}, 2048),
        ({"prefill": "fp8", "prefill_scratch_mib": 65}, 4096),
        ({"prefill": "fp8", "prefill_scratch_mib": 65, "prefill_profile": "x"}, 4096),
        ({"prefill": "exact"}, 4096),
    ):
        loading(*changed)
        assert Preparation.current() is not first
        first = Preparation.current()


@pytest.mark.engine  # no engine, but vLLM is imported: some seconds
@pytest.mark.parametrize("max_tokens", [None, 0])
def test_without_a_config_or_a_limit_of_tokens_all_that_is_measured_may_come(
    loading: Callable[..., None], max_tokens: int | None
) -> None:
    loading({}, max_tokens)
    assert Preparation.current().max_tokens == measure.TOKENS[-1]
    loading(None)
    assert Preparation.current().settings == Settings("auto", 128 << 20, None)


@pytest.mark.engine  # no engine, but vLLM is imported: some seconds
def test_layers_of_a_block_use_the_preparation_that_is_given_and_nothing_of_it_stays(
    loading: Callable[..., None], gpu: FakeGpu
) -> None:
    loading({"prefill": "fp8", "prefill_scratch_mib": 1})
    model = Model()
    model.preparation = Preparation.fresh()
    assert prepare.latest() is None
    with suppress(KeyError), prepare.using(model.preparation):
        assert Preparation.current() is prepare.latest() is model.preparation
        model.load()
        assert dispatch.linears()
        assert scratch.reserved(torch.device("cpu")) > 0
        raise KeyError  # whatever ends the block
    assert prepare.latest() is None
    assert dispatch.linears() == []
    assert scratch.reserved(torch.device("cpu")) == 0
    assert Preparation.current() is not model.preparation


def test_modes_are_orders_of_routes() -> None:
    orders = {mode: replace(AUTO, mode=mode).routes for mode in ("auto", "exact", "a8", "fp8", "off")}
    assert orders == {
        "auto": ("exact",),
        "exact": ("exact",),
        "a8": ("a8", "exact"),
        "fp8": ("fp8", "exact"),
        "off": (),
    }


# What is logged.


def test_the_first_call_says_the_table_once(gpu: FakeGpu, shown: Shown) -> None:
    pytest.importorskip("vllm")
    model = Model(FP8)
    weight = Weight.random(SHAPE)
    with prepare.using(model.preparation):
        linear = model.load()
        model.load()
        assert shown() == ""
        for _ in range(2):
            x = torch.ones(3, 128, dtype=torch.bfloat16)
            dispatch.op()(x, [weight.stock_scales(), weight.stock_words()], None, None, SHAPE.key, SHAPE.n)
    (line,) = shown().splitlines()
    assert line.startswith("INFO vllm-qwen36-plugin: prefill=fp8, ")
    assert "128x128 fp8 from 256 and exact from 512" in line
    assert linear.served == {"stock": 2}
