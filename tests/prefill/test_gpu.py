"""On a GPU: vLLM's own repacking and GEMMs, through the kernel that vLLM is offered.

    python -m pytest tests/prefill -m gpu

Needs torch, vLLM, pytest and this repository, and any GPU: Machete is tested on Hopper, e4m3 on Ada and later.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("clean")]

from vllm_qwen36_plugin.prefill import dispatch, kernel, measure, prepare, routes, scratch  # noqa: E402
from vllm_qwen36_plugin.prefill.kernel import FP8_SCALES  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import GEMMS, GemmName, Starts, cache_path, read  # noqa: E402

from . import real_gpu, warm  # noqa: E402
from .real_gpu import LARGE, TOKENS, Loaded, Server, activations_for, fp8_here, off, same  # noqa: E402
from .warm import EVERY, STOCK  # noqa: E402

Shown = Callable[[], str]
Serve = Callable[..., Server]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Each kernel before the first test: one process alone takes three minutes for them."""
    warm.all_at_once()


def assert_unpacks(loaded: Loaded) -> None:
    """All columns, in runs of unequal width."""
    shape, weight = loaded.shape, loaded.weight()
    dense = loaded.dense()
    first = 0
    while first < shape.n:
        columns = min(64 * (1 + first // 64 % 5), shape.n - first)
        part = torch.full((columns, shape.k), float("nan"), dtype=dense.dtype, device=real_gpu.DEVICE)
        routes.unpack(weight, part, first, shape)
        assert same(part, dense[first : first + columns]), (shape.key, first, columns)
        first += columns


def assert_products(loaded: Loaded, counts: tuple[int, ...] = TOKENS) -> None:
    """By each route and the stock kernel, against float32 with the checkpoint's numbers."""
    dense = loaded.dense().float().t()
    entry = loaded.entry
    orders: list[tuple[Any, ...]] = [(), ("exact",)]
    if hasattr(loaded.layer, FP8_SCALES):
        orders += [("fp8", gemm) for gemm in entry.gemms]
    for count in counts:
        x = activations_for(count, loaded)
        expected = x.float() @ dense
        size = float(expected.square().mean().sqrt())
        for order in orders:
            entry.routes, entry.starts = order[:1], Starts(1, 1, *order[1:])
            entry.served.clear()
            result = loaded(x)
            way = order[0] if order else "stock"
            assert entry.served == {way: 1}
            assert result.dtype == x.dtype
            assert off(result, expected) < (0.06 if way == "fp8" else 0.006), (loaded.shape.key, way, count)
            worst = float((result.float() - expected).abs().max()) / size
            # A wrong column or tile would be off by 1 and more.
            assert worst < (0.5 if way == "fp8" else 0.06), (loaded.shape.key, way, count)


# What vLLM's repacking makes, and products of it.


@pytest.mark.parametrize(("stock", "bits", "group_size", "dtype"), EVERY)
def test_every_weight_unpacks_to_what_was_loaded(
    serve: Serve, shown: Shown, stock: str, bits: int, group_size: int, dtype: str
) -> None:
    server = serve()
    for k, n in ((128, 128), (384, 640), (1152, 256)):
        loaded = server.load(k, n, stock, bits, group_size, dtype)
        assert_unpacks(loaded)
        assert loaded.entry.routes == (("fp8", "exact") if fp8_here() else ("exact",))
    assert_products(loaded, (1, 17, 129))
    assert "is off for" not in shown()


@pytest.mark.parametrize(
    ("k", "n", "group_size"), [(192, 64, 64), (64, 320, 32), (160, 192, -1), (16, 64, -1)]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_that_marlin_pads_is_unpacked_without_its_padding(
    serve: Serve, shown: Shown, bits: int, k: int, n: int, group_size: int
) -> None:
    loaded = serve(prefill="exact").load(k, n, "marlin", bits, group_size)
    assert loaded.entry.routes == ("exact",), shown()
    assert_unpacks(loaded)
    for count in (1, 129):
        loaded.entry.starts = Starts(64)
        x = activations_for(count, loaded)
        assert off(loaded(x), x.float() @ loaded.dense().float().t()) < 0.006


@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize("name", LARGE)
def test_the_27bs_linears(serve: Serve, shown: Shown, name: str, stock: str) -> None:
    loaded = serve().load(*LARGE[name], stock)
    assert_unpacks(loaded)
    assert_products(loaded)
    assert "is off for" not in shown()


@pytest.mark.parametrize("stock", STOCK)
def test_a_small_scratch_gives_the_same_numbers(serve: Serve, stock: str) -> None:
    loaded = serve(prefill_scratch_mib=1, prefill="exact").load(5120, 1024, stock)
    assert scratch.reserved(loaded.words.device) == 64 * 5120 * 2
    assert len(scratch.tiles(loaded.words.device, 5120, 1024, torch.bfloat16)) == 16
    assert_products(loaded, (17, 1000))


def gemms_here(loaded: Loaded) -> tuple[GemmName, ...]:
    """Those that passed; on Hopper both do."""
    if real_gpu.capability() == (9, 0):
        assert loaded.entry.gemms == GEMMS
    return loaded.entry.gemms


@pytest.mark.parametrize("tokens", [1000, 3000])
def test_fp8_in_parts_gives_the_numbers_of_fp8_whole(serve: Serve, tokens: int) -> None:
    """With parts copied, and with a buffer for all of W, which a Hopper GPU makes from 2,304 tokens on."""
    if not fp8_here():
        pytest.skip("this GPU does not multiply e4m3")
    loaded = serve(prefill_scratch_mib=1).load(1536, 1536)
    device = loaded.words.device
    assert len(scratch.tiles(device, 1536, 1536, routes.FP8)) == 3
    x = activations_for(tokens, loaded)
    products = {gemm: loaded.entry.run("fp8", x, loaded.weight(), gemm) for gemm in gemms_here(loaded)}
    scratch.reserve(device, 4 << 20)
    assert len(scratch.tiles(device, 1536, 1536, routes.FP8)) == 1
    expected = x.float() @ loaded.dense().float().t()
    for gemm, product in products.items():
        assert off(product, loaded.entry.run("fp8", x, loaded.weight(), gemm).float()) < 1e-3, gemm
        assert off(product, expected) < 0.06, gemm


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("stock", STOCK)
def test_scales_that_are_no_numbers_stay_in_their_columns(
    serve: Serve, shown: Shown, stock: str, bad: float
) -> None:
    def spoil(scales: torch.Tensor) -> torch.Tensor:
        scales[1, 77] = bad
        return scales

    loaded = serve().load(384, 256, stock, scales=spoil)
    assert "is off for" not in shown()
    assert_unpacks(loaded)
    others = torch.arange(256, device=real_gpu.DEVICE) != 77
    x = activations_for(129, loaded)
    expected = (x.float() @ loaded.dense().float().t())[:, others]
    for order in [("exact",), ("fp8",)] if fp8_here() else [("exact",)]:
        loaded.entry.routes, loaded.entry.starts = order, Starts(1, 1)
        result = loaded(x)
        assert off(result[:, others], expected) < 0.06
        assert not bool(result[:, 77].isfinite().any())


@pytest.mark.parametrize("stock", STOCK)
def test_a_repacked_weight_with_one_wrong_bit_keeps_the_stock_kernel(
    serve: Serve, shown: Shown, stock: str
) -> None:
    def flip(layer: torch.nn.Module) -> None:
        flat = layer.qweight.data.as_strided((layer.qweight.numel(),), (1,))
        flat[777] ^= 1

    loaded = serve(prefill="exact").load(384, 256, stock, repacked=flip)
    assert loaded.entry.routes == ()
    (line,) = [line for line in shown().splitlines() if "is off for" in line]
    assert "does not unpack to the checkpoint's numbers" in line
    assert loaded(activations_for(300, loaded)).shape == (300, 256)
    assert loaded.entry.served == {"stock": 1}


@pytest.mark.parametrize("stock", STOCK)
def test_the_stock_kernels_op_is_called_straight_for_every_layer_of_a_shape(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, stock: str
) -> None:
    """Bit for bit what vLLM's Python makes of it, without that Python."""
    server = serve(prefill="exact")
    first, second = (server.load(1024, 640, stock) for _ in range(2))
    entry = first.entry
    assert entry.replay is not None
    assert entry.plain
    entry.routes = ()
    xs = [activations_for(count, first) for count in (1, 17, 64, 65, 300, 1000)]
    tensors = {one: [getattr(one.layer, name) for name in one.method.kernel.names] for one in (first, second)}
    outputs = {one: [entry.by_vllm(x, tensors[one]) for x in xs] for one in (first, second)}

    def not_called(*_: Any, **__: Any) -> None:
        raise AssertionError("through vLLM's Python")

    monkeypatch.setattr(type(entry.kernel), "apply_weights", not_called)
    for one in (first, second):
        for x, expected in zip(xs, outputs[one], strict=True):
            assert same(one(x), expected), len(x)
    assert not torch.equal(outputs[first][0], outputs[second][0])


# Tokens.


@pytest.mark.parametrize("route", ["exact", "fp8"])
@pytest.mark.parametrize("stock", STOCK)
def test_tokens_that_are_no_numbers_leave_all_others_alone(serve: Serve, stock: str, route: str) -> None:
    if route == "fp8" and not fp8_here():
        pytest.skip("this GPU does not multiply e4m3")
    loaded = serve().load(1024, 640, stock)
    loaded.entry.routes, loaded.entry.starts = (route,), Starts(1, 1)
    x = activations_for(300, loaded)
    clean = loaded(x)
    x[3] = float("nan")
    x[70, 5] = float("inf")
    x[299, 1000] = float("-inf")
    result = loaded(x)
    good = torch.ones(300, dtype=torch.bool, device=real_gpu.DEVICE)
    good[[3, 70, 299]] = False
    assert torch.equal(result[good], clean[good])
    # e4m3 has no infinity: what is none of the numbers becomes NaN.
    assert not bool(result[~good].isfinite().any())


def test_tokens_of_another_stride_and_shape_are_served(serve: Serve) -> None:
    loaded = serve(prefill="exact").load(256, 384)
    loaded.entry.starts = Starts(64)
    wide = torch.randn(4, 50, 512, dtype=torch.bfloat16, device=real_gpu.DEVICE)
    x = wide[:, :, 128:384]
    result = loaded(x)
    assert result.shape == (4, 50, 384)
    assert off(result, x.float() @ loaded.dense().float().t()) < 0.006
    assert loaded.entry.served == {"exact": 1}


# Graphs.


@pytest.mark.parametrize("route", ["exact", "fp8"])
@pytest.mark.parametrize("stock", STOCK)
def test_cuda_graphs_on_both_sides_of_a_start(serve: Serve, stock: str, route: str) -> None:
    """Each keeps its way and reads weights where they lie; layers share the scratch one after another.

    None holds 8 bits: it is replayed for any step of its size.
    """
    if route == "fp8" and not fp8_here():
        pytest.skip("this GPU does not multiply e4m3")
    server = serve(prefill_scratch_mib=1)
    first, second = (server.load(1536, 1536, stock) for _ in range(2))
    assert len(scratch.tiles(first.words.device, 1536, 1536, torch.bfloat16)) > 1
    first.entry.routes, first.entry.starts = (route,), Starts(64, 64)

    def run(x: torch.Tensor) -> torch.Tensor:
        return second(first(x))

    graphs = {}
    for count, way in ((32, "stock"), (128, "stock" if route == "fp8" else route)):
        x = activations_for(count, first)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(x)
        torch.cuda.current_stream().wait_stream(side)
        first.entry.served.clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(x)
        assert first.entry.served == {way: 2}
        graphs[count] = (graph, x, out)
    for _ in range(2):
        for count in (128, 32):
            graph, x, out = graphs[count]
            x.copy_(activations_for(count, first))
            expected = run(x)
            graph.replay()
            assert off(out, expected.float()) < (0.06 if route == "fp8" else 1e-3)
        # As a reload does: other weights at the same addresses.
        for name in first.method.kernel.names:
            a, b = getattr(first.layer, name).data, getattr(second.layer, name).data
            copy = a.clone()
            a.copy_(b)
            b.copy_(copy)
        if route == "fp8":
            a, b = getattr(first.layer, FP8_SCALES), getattr(second.layer, FP8_SCALES)
            copy = a.clone()
            a.copy_(b)
            b.copy_(copy)


def test_compiled_by_inductor_it_is_one_graph_for_all_numbers_of_tokens(serve: Serve) -> None:
    server = serve()
    loaded = [server.load(512, 512) for _ in range(2)]
    route = loaded[0].entry.routes[0]
    loaded[0].entry.starts = Starts(64, 64)

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(linear.layer for linear in loaded)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for linear in loaded:
                x = torch.nn.functional.silu(linear(x))
            return x

    model = Model()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for count in (3, 63, 64, 300, 2):
        x = activations_for(count, loaded[0])
        assert off(compiled(x), model(x).float()) < 0.01
    assert loaded[0].entry.served == {"stock": 12, route: 8}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# Times.


def test_it_is_measured_once_and_kept(serve: Serve, monkeypatch: pytest.MonkeyPatch, shown: Shown) -> None:
    server = serve(measuring=True, tokens=512)
    loaded = server.load(1024, 2048)
    where = measure.card(loaded.words.device, 128)
    profile = read(Path(cache_path(where)))
    assert profile.card == where
    assert where.gpu == torch.cuda.get_device_name()
    assert profile.starts == {loaded.shape: loaded.entry.starts}
    times = profile.times_us[loaded.shape]
    gemms = {f"fp8_{gemm}" for gemm in gemms_here(loaded)} if len(loaded.entry.gemms) > 1 else set()
    assert set(times) == {"stock", *loaded.entry.routes, *gemms}
    for by_tokens in times.values():
        assert list(by_tokens) == [tokens for tokens in measure.TOKENS if tokens <= 512]
        assert all(0.5 < us < 1e5 for us in by_tokens.values())

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(measure, "time_routes", again)
    prepare._current.clear()
    assert server.load(1024, 2048).entry.starts == loaded.entry.starts
    assert "could not be measured" not in shown()


# Humming's kernel on Marlin's bytes.


def wants_humming(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("humming")
    for module in (kernel, prepare):
        monkeypatch.setattr(module, "left_to_vllm", lambda: True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_humming_multiplies_marlins_bytes_as_marlin_does(
    serve: Serve, shown: Shown, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    wants_humming(monkeypatch)
    loaded = serve().load(5120, 6144, dtype=dtype)
    assert shown() == ""
    entry, dense = loaded.entry, loaded.dense().float().t()
    entry.routes, entry.starts = (), Starts(humming=((1, None),))
    for count in (*TOKENS, 48):
        x = activations_for(count, loaded)
        entry.served.clear()
        assert off(loaded(x), x.float() @ dense) < 0.006, count
        assert entry.served == {"humming": 1}


def test_humming_is_measured_and_serves_inside_a_cuda_graph(
    serve: Serve, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    wants_humming(monkeypatch)
    layers = [serve(measuring=True).load(5120, 6144) for _ in range(2)]
    starts = layers[0].entry.starts
    assert starts.humming, read(cache_path(measure.card(torch.device("cuda"), 128))).times_us
    x = activations_for(3, layers[0])
    expected = [loaded(x) for loaded in layers]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [loaded(x) for loaded in layers for _ in range(8)]
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for number, result in enumerate(results):
        assert same(result, expected[number // 8])


@pytest.mark.parametrize("module", LARGE)
def test_machetes_weight_is_compared_with_humming_and_right_either_way(
    serve: Serve, shown: Shown, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    wants_humming(monkeypatch)
    server = serve(prefill="exact")
    loaded = server.load(*LARGE[module], "machete")
    assert "not compared" not in shown()
    dense = loaded.dense().float().t()
    for count in TOKENS:
        x = activations_for(count, loaded)
        assert off(loaded(x), x.float() @ dense) < 0.006, count


def test_a_slow_host_leaves_passes_outside_graphs_to_the_stock_kernel(serve: Serve) -> None:
    loaded = serve().load(5120, 6144)
    loaded.entry.starts = Starts(128)
    x = activations_for(1000, loaded)
    for eager_from, way in ((1001, "stock"), (1000, "exact")):
        dispatch.pace().eager_from = eager_from
        loaded.entry.served.clear()
        loaded(x)
        assert loaded.entry.served == {way: 1}
    dispatch.pace().eager_from = 1001
    loaded.entry.served.clear()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        loaded(x)
    assert loaded.entry.served == {"exact": 1}
