"""A stock kernel's call of its op without vLLM's Python: what is replayed, what is not, whose tensors it reads."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from vllm_qwen36_plugin.prefill import dispatch, prepare, replay, selftest  # noqa: E402
from vllm_qwen36_plugin.prefill.expand import reference  # noqa: E402
from vllm_qwen36_plugin.prefill.prepare import Preparation  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Starts  # noqa: E402
from vllm_qwen36_plugin.prefill.selftest import Original  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402

from .fake_gpu import FakeGpu  # noqa: E402
from .loading import AUTO  # noqa: E402
from .made import Weight, same  # noqa: E402

pytestmark = pytest.mark.usefixtures("clean")

SHAPE = Shape("marlin", 64, 128, 4, -1, "bfloat16")
_libraries: list[Any] = []


def gemm(
    x: Any,
    bias: Any,
    words: Any,
    scales: Any,
    zeros: Any,
    workspace: Any,
    m: int,
    n: int,
    k: int,
    atomic: bool,
) -> Any:
    """As `_C::marlin_gemm`: a new tensor, and a workspace that must be zeros and is so again."""
    assert x.shape == (m, k)
    assert x.is_contiguous()
    assert not workspace.any()
    assert zeros.numel() == 0
    dense = torch.empty(n, k, dtype=x.dtype)
    reference(words, scales, dense, 0, layout="marlin", bits=4, group_size=SHAPE.group_size)
    return x @ dense.t()


@pytest.fixture(scope="module")
def ops() -> Any:
    if not _libraries:
        library = torch.library.Library("qwen36_test", "FRAGMENT")
        library.define(
            "gemm(Tensor x, Tensor? bias, Tensor words, Tensor scales, Tensor? zeros, Tensor workspace,"
            " SymInt m, SymInt n, SymInt k, bool atomic) -> Tensor"
        )
        library.impl("gemm", gemm, "CPU")
        library.define("gemm_of(Tensor x, *, Tensor words, Tensor scales) -> Tensor")
        library.impl("gemm_of", lambda x, words, scales: x @ x.new_ones(SHAPE.k, SHAPE.n), "CPU")
        _libraries.append(library)
    return torch.ops.qwen36_test


class Marlin:
    """As vLLM's: views around one op, its own workspace, an empty tensor of the layer's for zero points."""

    def __init__(self) -> None:
        self.workspace = torch.zeros(132, dtype=torch.int32)
        self.calls = 0

    def op(self, x: Any, layer: Any) -> Any:
        return torch.ops.qwen36_test.gemm(
            x,
            None,
            layer.words,
            layer.scales,
            layer.zeros,
            self.workspace,
            x.shape[0],
            SHAPE.n,
            SHAPE.k,
            False,
        )

    def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
        self.calls += 1
        out_shape = (*x.shape[:-1], SHAPE.n)
        out = self.op(x.view(1, -1).view(-1, x.shape[-1]), layer)
        return (out if bias is None else out + bias).view(1, -1).view(out_shape)


class Layer(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = Weight.random(SHAPE, seed)
        self.tensors = [self.weight.stock_words(), self.weight.stock_scales()]
        self.words, self.scales = self.tensors
        self.zeros = torch.nn.Parameter(torch.empty(0, dtype=torch.int32), requires_grad=False)


def linear_of(layer: Layer, kernel: Any) -> dispatch.Linear:
    return dispatch.Linear(SHAPE, kernel, ("words", "scales"), 0, 1, weakref.ref(layer))


def load(preparation: Preparation, layer: Layer, kernel: Any) -> dispatch.Linear:
    linear = linear_of(layer, kernel)
    original = (
        Original.copy_of(layer.weight.words(), layer.weight.scales) if preparation.is_new(SHAPE) else None
    )
    preparation.enter(linear, layer.tensors, None, original)
    return linear


def activations(count: int) -> torch.Tensor:
    return torch.randn(count, SHAPE.k, generator=torch.Generator().manual_seed(count)).bfloat16()


def product(x: torch.Tensor, layer: Layer) -> torch.Tensor:
    return x @ layer.weight.dense().bfloat16().contiguous().t()


@pytest.fixture
def preparation(gpu: FakeGpu) -> Preparation:
    return Preparation(AUTO, 8192)


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch, ops: Any) -> None:
    """A CPU is slow."""
    monkeypatch.setattr(replay, "TOKENS", (1, 17, 40))
    monkeypatch.setattr(selftest, "TOKENS", (1, 33))


def test_the_op_is_called_without_the_kernels_python_for_every_layer_of_a_shape(
    preparation: Preparation,
) -> None:
    layers, kernels = [Layer(seed) for seed in range(3)], [Marlin() for _ in range(3)]
    linears = [load(preparation, *pair) for pair in zip(layers, kernels, strict=True)]
    assert [linear.replay is not None for linear in linears] == [True] * 3
    assert [kernel.calls > 0 for kernel in kernels] == [True, False, False]  # looked at once
    kernels[0].calls = 0
    for layer, linear in zip(layers, linears, strict=True):
        for count in (1, 5, 300):
            x = activations(count)
            assert torch.equal(linear.stock(x, layer.tensors), product(x, layer))
    assert [kernel.calls for kernel in kernels] == [0, 0, 0]


def test_both_ops_replay_and_count_it(preparation: Preparation) -> None:
    pytest.importorskip("vllm")
    layer, kernel = Layer(), Marlin()
    linear = load(preparation, layer, kernel)
    linear.starts = Starts()
    kernel.calls = 0
    x = activations(5)
    expected = product(x, layer)
    assert torch.equal(dispatch.op()(x, layer.tensors, None, None, SHAPE.key, SHAPE.n), expected)
    assert linear.plain
    assert torch.equal(dispatch.plain_op()(x, *layer.tensors, None, SHAPE.key, SHAPE.n), expected)
    assert linear.served == {"stock": 2}
    assert kernel.calls == 0


def test_a_bias_and_tokens_with_gaps_go_through_vllms_python(preparation: Preparation) -> None:
    layer, kernel = Layer(), Marlin()
    linear = load(preparation, layer, kernel)
    wide, bias = activations(6).view(3, 2 * SHAPE.k)[:, : SHAPE.k], activations(2).reshape(-1)[: SHAPE.n]
    calls: list[tuple[Any, Any]] = []

    def apply_weights(layer: Any, x: Any, bias: Any) -> str:
        calls.append((x, bias))
        return "by vLLM"

    vars(kernel)["apply_weights"] = apply_weights
    assert linear.stock(wide, layer.tensors) == "by vLLM"  # type: ignore[comparison-overlap]
    assert linear.stock(activations(3), layer.tensors, bias) == "by vLLM"  # type: ignore[comparison-overlap]
    assert [x is wide for x, _ in calls] == [True, False]
    assert calls[1][1] is bias
    assert isinstance(linear.stock(activations(3), layer.tensors), torch.Tensor)


def test_weights_in_other_tensors_and_a_kernels_new_state_are_read_at_once(preparation: Preparation) -> None:
    """As after sleep, or a reload: the layer's tensors come with the call, and loading binds the state anew."""
    layer, kernel = Layer(1), Marlin()
    linear = load(preparation, layer, kernel)
    other = Layer(2)
    x = activations(7)
    assert torch.equal(linear.stock(x, other.tensors), product(x, other))
    kernel.workspace.fill_(1)  # no longer of use
    kernel.workspace = torch.zeros(132, dtype=torch.int32)
    again = load(preparation, other, kernel)
    assert torch.equal(again.stock(x, other.tensors), product(x, other))


def test_a_template_keeps_no_layer_and_no_kernel_alive(preparation: Preparation) -> None:
    layer, kernel = Layer(), Marlin()
    layer.zeros.loader = layer.forward  # as vLLM's parameters have
    linear = load(preparation, layer, kernel)
    assert linear.template is not None
    gone = weakref.ref(layer), weakref.ref(kernel)
    template, preparation.linears = linear.template, {}
    dispatch.clear()
    del layer, kernel, linear
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    later = Layer(3)
    x = activations(4)
    result = template.bound(Marlin())(x, later.tensors)
    assert torch.equal(result, product(x, later))


class Padding(Marlin):
    """Pads x, as for a k that no tile divides."""

    def op(self, x: Any, layer: Any) -> Any:
        return super().op(torch.nn.functional.pad(x, (0, 0)), layer)


class Cutting(Marlin):
    """Of the result: a view, but of fewer columns."""

    def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
        return self.op(x, layer)[:, :64]


class Zeroing(Marlin):
    """In place, before each call."""

    def op(self, x: Any, layer: Any) -> Any:
        self.workspace.zero_()
        return super().op(x, layer)


class Deciding(Marlin):
    """By the number of tokens, as an atomic add may be."""

    def op(self, x: Any, layer: Any) -> Any:
        rest = (x.shape[0], SHAPE.n, SHAPE.k, x.shape[0] < 20)
        return torch.ops.qwen36_test.gemm(
            x, None, layer.words, layer.scales, layer.zeros, self.workspace, *rest
        )


class Hiding(Marlin):
    """Its workspace, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [self.workspace]
        del self.workspace

    def op(self, x: Any, layer: Any) -> Any:
        rest = (self.hidden[0], x.shape[0], SHAPE.n, SHAPE.k, False)
        return torch.ops.qwen36_test.gemm(x, None, layer.words, layer.scales, layer.zeros, *rest)


class Naming(Marlin):
    """Arguments by name."""

    def op(self, x: Any, layer: Any) -> Any:
        return torch.ops.qwen36_test.gemm_of(x, words=layer.words, scales=layer.scales)


class Aside(Marlin):
    """It gets other tensors than x."""

    def op(self, x: Any, layer: Any) -> Any:
        return torch.ops.qwen36_test.gemm(
            layer.others[: len(x)], None, layer.words, layer.scales, layer.zeros, self.workspace, len(x), SHAPE.n,
            SHAPE.k, False,
        )  # fmt: skip


class Idle(Marlin):
    """No op at all."""

    def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
        return x


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Padding, "it calls aten.constant_pad_nd.default, qwen36_test.gemm.default"),
        (Cutting, "the kernel returns something else than qwen36_test.gemm.default does"),
        (Zeroing, "it calls aten.zero_.default, qwen36_test.gemm.default"),
        (Deciding, "argument 9 of qwen36_test.gemm.default depends on the number of tokens"),
        (Hiding, "takes a tensor that is neither the layer's nor the kernel's"),
        (Naming, "takes words, scales by name"),
        (Idle, "it calls no op"),
    ],
)
def test_whatever_is_more_than_one_call_is_left_to_vllms_python_and_served(
    preparation: Preparation, kernel: type[Marlin], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer, made = Layer(), kernel()
    with pytest.raises(replay.NotReplayable) as caught:
        selftest.record_replay(linear_of(layer, made), layer.tensors)
    assert reason in str(caught.value)
    linear = load(preparation, layer, made)
    assert (linear.template, linear.replay) == (None, None)
    assert linear.routes == ("exact",)
    before = made.calls
    linear.stock(activations(3), layer.tensors)
    assert made.calls == before + (kernel not in (Cutting, Idle))


def test_other_tokens_than_it_was_given_are_not_replayed(preparation: Preparation) -> None:
    layer = Layer()
    layer.others = torch.zeros(50, SHAPE.k, dtype=torch.bfloat16)
    with pytest.raises(replay.NotReplayable, match="neither the layer's nor the kernel's"):
        selftest.record_replay(linear_of(layer, Aside()), layer.tensors)
    with pytest.raises(ValueError, match="one number of tokens"):
        replay.record(lambda x: x, Marlin(), layer.tensors, [activations(3), activations(3)])


class Remembering(Marlin):
    """One layer's words, as if they were its own state: right for that layer alone."""

    def op(self, x: Any, layer: Any) -> Any:
        if not hasattr(self, "first"):
            self.address, self.first = layer.words.data_ptr(), torch.from_numpy(layer.words.numpy().copy())
        words = self.first if self.address == layer.words.data_ptr() else layer.words
        rest = (self.workspace, x.shape[0], SHAPE.n, SHAPE.k, False)
        return torch.ops.qwen36_test.gemm(x, None, words, layer.scales, layer.zeros, *rest)


class Turning(Marlin):
    """Another result from some number of tokens on, which nothing before showed."""

    def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
        result = super().apply_weights(layer, x, bias)
        return -result if len(x) == 33 else result


@pytest.mark.parametrize(("kernel", "count"), [(Remembering, 1), (Turning, 33)])
def test_a_replay_that_differs_in_a_bit_is_dropped(
    preparation: Preparation, kernel: type[Marlin], count: int
) -> None:
    layer, made = Layer(), kernel()
    linear = linear_of(layer, made)
    again = selftest.record_replay(linear, layer.tensors).bound(made)
    problem = selftest.problem_with_replay(linear, again, layer.tensors)
    assert problem == f"{count} tokens are not what vLLM's Python makes of them"
    assert load(preparation, layer, made).replay is None


def test_what_is_no_number_is_no_difference(preparation: Preparation) -> None:
    layer = Layer()
    layer.scales[0, 3] = float("nan")
    linear, made = linear_of(layer, Marlin()), Marlin()
    again = selftest.record_replay(linear_of(layer, made), layer.tensors).bound(made)
    assert selftest.problem_with_replay(linear, again, layer.tensors) is None


def test_a_kernel_that_cannot_be_looked_at_is_served_all_the_same(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Iterator[None]:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(prepare, "record_replay", broken)
    layer = Layer()
    linear = load(preparation, layer, Marlin())
    assert linear.replay is None
    x = activations(3)
    assert same(linear.stock(x, layer.tensors), product(x, layer))
