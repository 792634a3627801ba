"""Humming's kernel beside Marlin's on one weight, and Machete's weight held as Marlin does. Without a GPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from threading import get_native_id
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")

from vllm_qwen36_plugin.prefill import base, humming, measure  # noqa: E402
from vllm_qwen36_plugin.prefill.base import Load  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Starts, winning_ranges  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402
from vllm_qwen36_plugin.upstream import linear_kernels  # noqa: E402

from .made import DenseKernel  # noqa: E402
from .stock import MACHETE, Layer, MarlinLinearKernel, activations, entry  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM's linears are imported: some seconds

MARLIN = Shape("marlin", 128, 256, 4, 64, "bfloat16")
OTHER = Shape("marlin", 256, 256, 4, 64, "bfloat16")
Serving = Callable[..., AbstractContextManager[None]]


class Library:
    """`humming-kernels` where it would run: what it multiplied, and whether its bytes are Marlin's."""

    def __init__(self) -> None:
        self.same, self.wrong = True, False
        self.late: Exception | None = None
        self.begun: list[Shape] = []
        self.calls: list[int] = []

    def suits(self, shape: Shape) -> bool:
        return (shape.layout, shape.bits, shape.n % 256, shape.k % 128) == ("marlin", 4, 0, 0)

    def begin(self, shape: Shape, device: Any = None) -> None:
        self.begun.append(shape)

    def kernel_for(self, shape: Shape, device: Any) -> Any:
        if self.late is not None:
            raise self.late

        class Tensors:
            pass

        def call(x: Any, words: Any, scales: Any) -> Any:
            self.calls.append(len(x))
            layer = Tensors()
            layer.words, layer.scales = words, scales  # type: ignore[attr-defined]
            return DenseKernel(shape).apply_weights(layer, x) * (2 if self.wrong else 1)

        call.locks = torch.zeros(4, 8, dtype=torch.int32)  # type: ignore[attr-defined]
        return call

    def same_bytes(self, *_: Any) -> bool:
        return self.same


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    for name in ("suits", "begin", "kernel_for", "same_bytes"):
        monkeypatch.setattr(humming, name, getattr(made, name))
    return made


def test_one_weight_is_multiplied_by_whichever_kernel_is_faster(
    serving: Serving, stock_is: Any, library: Library, shown: Callable[[], str]
) -> None:
    stock_is("MarlinLinearKernel")
    with serving():
        layer = Layer(MARLIN).load()
    linear = entry(layer)
    assert library.begun == [MARLIN]
    assert shown() == ""
    # Faster up to 32 tokens (fake_gpu.MICROSECONDS), where exact is from 512 on.
    assert linear.starts == Starts(512, humming=((1, 32),))
    library.calls.clear()
    ways = {1: "humming", 32: "humming", 33: "stock", 500: "stock", 512: "exact"}
    for count, way in ways.items():
        linear.served.clear()
        x = activations(count)
        assert torch.allclose(layer(x).float(), (x @ layer.dense.t()).float(), atol=0.05)
        assert linear.served == {way: 1}
    assert library.calls == [1, 32]
    assert "128x256 humming for 1-32 and exact from 512" in shown()


def test_its_locks_are_a_buffer_of_the_model_which_sleep_keeps(
    serving: Serving, stock_is: Any, library: Library
) -> None:
    stock_is("MarlinLinearKernel")
    with serving():
        layers = [Layer(MARLIN).load(seed) for seed in range(2)]
    call = entry(layers[0]).humming
    assert call is not None
    buffers = [dict(layer.named_buffers()) for layer in layers]
    assert [list(each) for each in buffers] == [["qwen36_humming_locks"], []]
    assert buffers[0]["qwen36_humming_locks"] is call.locks  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ({"same": False}, "it keeps weights in another order than Marlin"),
        ({"wrong": True}, "tokens are off by"),
        ({"late": TimeoutError()}, "still being compiled; the next start finds them"),
        ({"late": RuntimeError("no compiler")}, "no compiler"),
    ],
    ids=["layout", "numbers", "late", "broken"],
)
def test_a_library_that_cannot_be_trusted_leaves_the_stock_kernel_with_one_warning(
    serving: Serving,
    stock_is: Any,
    library: Library,
    shown: Callable[[], str],
    flaw: dict[str, Any],
    said: str,
) -> None:
    stock_is("MarlinLinearKernel")
    vars(library).update(flaw)
    with serving():
        first, second = Layer(MARLIN).load(1), Layer(MARLIN).load(2)
    assert shown().count("Humming's kernels are not used") == 1
    assert said in shown()
    for layer in (first, second):
        assert torch.equal(layer(activations(3)), activations(3) @ layer.dense.t())
    assert entry(first).starts == Starts(512)


@pytest.mark.parametrize("choice", ["backend", "disabled", "bits", "width"])
def test_it_is_not_tried_where_it_is_not_wanted_or_has_another_layout(
    serving: Serving, stock_is: Any, library: Library, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    stock_is("MarlinLinearKernel")
    shape = {
        "bits": Shape("marlin", 128, 256, 8, 64, "bfloat16"),
        "width": Shape("marlin", 128, 192, 4, 64, "bfloat16"),
    }.get(choice, MARLIN)
    if choice == "disabled":
        monkeypatch.setenv("VLLM_DISABLED_KERNELS", "HummingLinearKernel")
    with serving():
        if choice == "backend":
            from vllm.config import get_current_vllm_config

            monkeypatch.setattr(get_current_vllm_config().kernel_config, "linear_backend", "marlin")
        layer = Layer(shape).load()
    assert library.begun == []
    assert entry(layer).humming is None


def test_a_weight_that_humming_holds_for_vllm_takes_the_routes_of_marlins_layout(
    serving: Serving, stock_is: Any, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Hopper where Machete is off: vLLM's kernel renames the tensors."""

    class HummingLinearKernel(MarlinLinearKernel):
        def process_weights_after_loading(self, layer: Any) -> None:
            super().process_weights_after_loading(layer)
            for name, own in (("qweight", "weight"), ("scales", "weight_scale")):
                setattr(layer, own, torch.nn.Parameter(getattr(layer, name).data, requires_grad=False))
                delattr(layer, name)
            self.w_q_name, self.w_s_name = "weight", "weight_scale"

    from . import stock

    monkeypatch.setattr(stock, "HummingLinearKernel", HummingLinearKernel, raising=False)
    stock_is("HummingLinearKernel")
    with serving(prefill="fp8"):
        layer = Layer(MARLIN).load()
    linear = entry(layer)
    assert (linear.names, linear.routes) == (("weight", "weight_scale"), ("fp8", "exact"))
    assert linear.humming is None
    for count in (3, 300, 600):
        x = activations(count)
        assert torch.allclose(layer(x).float(), (x @ layer.dense.t()).float(), atol=0.3)


@pytest.mark.parametrize("faster", [True, False])
def test_machetes_weight_is_held_as_marlin_does_where_that_serves_the_load_faster(
    serving: Serving, stock_is: Any, library: Library, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    stock_is("MacheteLinearKernel")
    monkeypatch.setattr(linear_kernels, "_kernels", lambda platform: [MarlinLinearKernel])
    timed: list[set[str]] = []

    def in_turns(calls: Any) -> dict[str, float]:
        results = {name: call() for name, call in calls.items()}
        assert all(torch.allclose(each, results["stock"], atol=0.1) for each in results.values())
        timed.append(set(calls))
        return {"stock": 10.0, "marlin": 20.0, "humming": 7.0 if faster else 9.9}

    monkeypatch.setattr(measure, "in_turns", in_turns)
    with serving():
        first, second = Layer(MACHETE).load(1), Layer(MACHETE).load(2)
    assert timed == [{"stock", "marlin", "humming"}] * 3
    for layer in (first, second):
        assert layer.kernel.shape == (MARLIN if faster else MACHETE)
        for count in (3, 600):
            x = activations(count)
            assert torch.allclose(layer(x).float(), (x @ layer.dense.t()).float(), atol=0.05)


def test_machete_stays_if_the_comparison_fails(
    serving: Serving,
    stock_is: Any,
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    shown: Callable[[], str],
) -> None:
    stock_is("MacheteLinearKernel")
    monkeypatch.setattr(linear_kernels, "_kernels", lambda platform: [MarlinLinearKernel])
    library.late = TimeoutError()
    with serving():
        layer = Layer(MACHETE).load()
    assert layer.kernel.shape == MACHETE
    assert "not compared with Machete: they are still being compiled" in shown()
    assert torch.equal(layer(activations(3)), activations(3) @ layer.dense.t())


def test_a_start_waits_for_the_compiler_once_and_not_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling: Future[Any] = Future()
    monkeypatch.setattr(humming, "_configs", {(MARLIN, 0, None): compiling, (OTHER, 0, None): compiling})
    monkeypatch.setattr(humming, "_waited", [0.0])
    now, waits = [100.0], []

    def wait(futures: Any, timeout: float) -> None:
        waits.append(timeout)
        now[0] += timeout

    monkeypatch.setattr(humming, "wait", wait)
    monkeypatch.setattr(humming, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for shape in (MARLIN, OTHER, MARLIN):
        with pytest.raises(TimeoutError):
            humming.kernel_for(shape, torch.device("cuda", 0))
    assert waits == [humming.PATIENCE, 0, 0]


def test_what_the_compiler_raises_is_raised_where_the_kernel_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(shape: Shape, index: int) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(humming, "_compile", broken)
    monkeypatch.setattr(humming, "_configs", {})
    with pytest.raises(RuntimeError, match="no compiler"):
        humming.kernel_for(MARLIN, torch.device("cuda", 0))


def test_compilers_give_way_to_what_loads_and_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def compiles(shape: Shape, index: int) -> Any:
        started = subprocess.run(["nice"], capture_output=True, text=True, check=True)
        found.extend((os.getpriority(os.PRIO_PROCESS, get_native_id()), int(started.stdout)))
        return torch.zeros(4)

    monkeypatch.setattr(humming, "_compile", compiles)
    monkeypatch.setattr(humming, "_configs", {})
    before = os.getpriority(os.PRIO_PROCESS, get_native_id())
    humming.begin(MARLIN, torch.device("cuda", 0)).result(timeout=60)
    assert min(found) > before
    assert os.getpriority(os.PRIO_PROCESS, get_native_id()) == before


def test_the_load_is_that_of_a_request_alone_and_of_many() -> None:
    load = Load(chunk=1024, drafts=2, at_once=256)
    assert load.calls == {1024: 34, 3: pytest.approx(256 / 2.6), 48: pytest.approx(256 / 2.6)}
    assert load.microseconds({1024: 100.0, 3: 10.0, 48: 20.0}) == pytest.approx(3400 + 30 * 256 / 2.6)
    assert Load(8192, 0, 1).calls == {2048: 2, 1: 512}


def test_a_number_of_tokens_stands_for_those_since_the_one_before() -> None:
    stock = {8: 10.0, 16: 10.0, 32: 10.0, 64: 10.0, 128: 10.0}
    other = {8: 9.0, 16: 9.0, 32: 9.9, 64: 12.0, 128: 5.0}
    assert winning_ranges(stock, other, 0.03) == ((1, 16), (65, None))
    assert winning_ranges(stock, dict.fromkeys(stock, 9.9), 0.03) == ()
    assert winning_ranges(stock, dict.fromkeys(stock, 1.0), 0.03) == ((1, None),)
    assert base.Load(2048, 0, 1).calls[2048] == 2
