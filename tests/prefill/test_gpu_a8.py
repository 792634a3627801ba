"""On a GPU: the route ``a8``, Humming with activations of 8 bits on Marlin's words, and its guard.

    python -m pytest tests/prefill -m gpu

Needs what `test_gpu` does, and humming-kernels as vLLM 0.33 has it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")
pytest.importorskip("humming")

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("clean")]

from vllm_qwen36_plugin.prefill import activations, dispatch, guard, humming_8bit  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Starts  # noqa: E402

from . import real_gpu  # noqa: E402
from .real_gpu import LARGE, TOKENS, Server, activations_for, fp8_here, off, same  # noqa: E402

Shown = Callable[[], str]
Serve = Callable[..., Server]


@pytest.mark.parametrize("name", humming_8bit.SERVED)
@pytest.mark.parametrize("module", LARGE)
def test_a8_rounds_activations_and_nothing_else(serve: Serve, shown: Shown, module: str, name: str) -> None:
    if name.startswith("e4m3") and not fp8_here():
        pytest.skip("this GPU does not multiply e4m3")
    loaded = serve(prefill="a8").load(*LARGE[module])
    entry, dense = loaded.entry, loaded.dense().float().t()
    assert entry.routes == ("a8", "exact"), shown()
    assert entry.eight_bit is not None
    assert entry.eight_bit.name == humming_8bit.SERVED[0], shown()
    if name != entry.eight_bit.name:
        entry.eight_bit = humming_8bit.EightBitKernel(loaded.shape, name, loaded.words.device)
    entry.starts = Starts(a8=1)
    for count in TOKENS:
        x = activations_for(count, loaded)
        x[:, 5::128] *= 10
        entry.served.clear()
        result = loaded(x)
        assert entry.served == {"a8": 1}
        stored = entry.eight_bit.kind.stored
        quantized, scales = activations.quantize_groups(x, stored)
        expected = activations.reference_groups(x, stored)
        # A GPU divides to the last bit but one, and what is then a tie may be rounded either way.
        torch.testing.assert_close(scales, expected[1], rtol=1e-6, atol=0)
        assert float((quantized.float() != expected[0].float()).float().mean()) < 2e-3
        rounded = activations.values_of(quantized, scales) @ dense
        assert off(result, rounded) < 0.004, count
        assert off(result, x.float() @ dense) < (0.03 if name.startswith("int8") else 0.05), count


def test_a8_inside_a_cuda_graph_and_with_some_rows_only(serve: Serve) -> None:
    layers = [serve(prefill="a8").load(5120, 6144) for _ in range(2)]
    kernel_8 = layers[0].entry.eight_bit
    assert kernel_8 is not None
    x = activations_for(512, layers[0])
    weights = [loaded.weight() for loaded in layers]
    expected = [kernel_8(x, weight.words, weight.scales) for weight in weights]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [kernel_8(x, weight.words, weight.scales) for weight in weights for _ in range(8)]
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for number, result in enumerate(results):
        assert same(result, expected[number // 8])
    out = torch.zeros(512, 6144, dtype=torch.bfloat16, device=real_gpu.DEVICE)
    kernel_8(x[100:], weights[0].words, weights[0].scales, out=out[100:])
    assert not bool(out[:100].any())
    assert off(out[100:], expected[0][100:].float()) < 1e-3


def test_the_guard_decides_on_the_gpu_and_waits_for_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = serve(prefill="a8").load(5120, 6144)
    loaded.entry.starts = Starts(a8=1)
    dispatch.guard().watch(loaded.weight().words, "it")
    monkeypatch.setattr(dispatch, "_in_a_step", lambda: True)
    for scale, way in ((1, "a8"), (300, "stock")):
        dispatch.guard().watch(loaded.weight().words, "it")
        for _ in range(guard.PASSES):
            x = activations_for(1000, loaded)
            x[:, 5::128] *= scale
            loaded.entry.served.clear()
            loaded(x)
            assert loaded.entry.served == {"stock": 1}
        torch.cuda.synchronize()
        loaded.entry.served.clear()
        loaded(x)
        assert loaded.entry.served == {way: 1}, dispatch.guard().errors()
