"""A W4A16 linear of the 27B by each route and number of tokens, on one GPU.

    python -m bench.prefill.linear OUT.json [--layouts marlin machete] [--dtype bfloat16]

For each shape, with random weights of both signs, repacked by vLLM's own kernel:

    stock                vLLM's kernel
    exact, fp8           each route, for any number of tokens
    plugin, plugin_fp8   what is served with prefill=auto and prefill=fp8: the op, with the starts found at start-up
    cublas               a dense weight that was there all along

Microseconds a call in a CUDA graph, so without the host's share. Medians of rounds in which
the variants take turns. Errors are root mean squares against float32, relative.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from bench.arguments import command_line
from bench.engine import environment as versions
from bench.engine import turns
from bench.prefill.results import MODULES
from bench.results import save

_GROUP, BITS, _SCRATCH_MIB = 128, 4, 128
_ROWS = (1, 3, 16, 64, 128, 192, 256, 384, 512, 768, 1000, 1024, 1500, 2048, 3000, 4096, 8192)
# Of one graph, about; a round is as many of these as there are variants.
_GRAPH_US = 4000.0
_REPEATS = 9
Calls = dict[str, Callable[[], Any]]


@contextmanager
def vllm_config(**options: Any) -> Iterator[Any]:
    """A config of vLLM's for a model of the family, with these options for the plugin, as the current one."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.distributed.parallel_state import model_parallel_is_initialized

    config = VllmConfig()
    with set_current_vllm_config(config, check_compile=False), tempfile.TemporaryDirectory() as folder:
        # vLLM's parameters ask for their rank.
        if not model_parallel_is_initialized():
            init_distributed_environment(1, 0, f"file://{folder}/store", 0, backend="gloo")
            initialize_model_parallel(1)
        config.model_config = SimpleNamespace(
            hf_config=SimpleNamespace(architectures=["Qwen3_5ForConditionalGeneration"])
        )
        config.additional_config = {"qwen36": options}
        yield config


def random_weight(
    k: int, n: int, group: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """qweight int32 ``[k / 8, n]`` and scales ``[groups, n]``; scales of both signs."""
    qweight = torch.empty(k * BITS // 32, n, dtype=torch.int32, device=device).random_(-(2**31), 2**31)
    scales = torch.empty(k // group, n, device=device).uniform_(1e-3, 1e-2)
    signs = torch.randint(0, 2, scales.shape, device=device) * 2 - 1
    return qweight, (scales * signs).to(dtype)


def kernel_config(k: int, n: int, group: int, dtype: torch.dtype) -> Any:
    """What vLLM's GPTQ linear method asks a kernel for. ``has_g_idx`` up to 0.29."""
    from dataclasses import fields

    from vllm.model_executor.kernels.linear import MPLinearLayerConfig
    from vllm.scalar_type import scalar_types

    config: dict[str, Any] = {
        "full_weight_shape": (k, n),
        "partition_weight_shape": (k, n),
        "weight_type": scalar_types.uint4b8,
        "act_type": dtype,
        "group_size": group,
        "zero_points": False,
    }
    if any(field.name == "has_g_idx" for field in fields(MPLinearLayerConfig)):
        config["has_g_idx"] = False
    return MPLinearLayerConfig(**config)


def build(
    qweight: torch.Tensor, scales: torch.Tensor, kernel: type, group: int, act: torch.dtype | None = None
) -> tuple[Any, torch.nn.Module]:
    """``kernel`` with one layer of that weight, repacked."""
    from vllm.model_executor.parameter import GroupQuantScaleParameter, PackedvLLMParameter

    k, n = qweight.shape[0] * 32 // BITS, qweight.shape[1]
    layer = torch.nn.Module()
    # What vLLM's linears have, and its kernel for Humming reads.
    layer.params_dtype, layer.has_bias = scales.dtype, False
    layer.input_size_per_partition, layer.output_partition_sizes = k, [n]
    loader = {"weight_loader": lambda *_, **__: None}
    layer.register_parameter(
        "qweight",
        PackedvLLMParameter(
            data=qweight.clone(), input_dim=0, output_dim=1, packed_dim=0, packed_factor=32 // BITS, **loader
        ),
    )
    layer.register_parameter(
        "scales", GroupQuantScaleParameter(data=scales.clone(), input_dim=0, output_dim=1, **loader)
    )
    layer.register_parameter(
        "qzeros",
        PackedvLLMParameter(
            data=torch.zeros(scales.shape[0], n // 8, dtype=torch.int32, device=qweight.device),
            input_dim=0,
            output_dim=1,
            packed_dim=1,
            packed_factor=32 // BITS,
            **loader,
        ),
    )
    made = kernel(
        kernel_config(k, n, group, act or scales.dtype),
        w_q_param_name="qweight",
        w_s_param_name="scales",
        w_zp_param_name="qzeros",
    )
    made.process_weights_after_loading(layer)
    return made, layer


def recorded(call: Callable[[], Any], count: int) -> torch.cuda.CUDAGraph:
    """``count`` calls as one CUDA graph.

    Called once before, so that what is compiled or allocated on first use is not recorded.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            call()
    return graph


def graphed(calls: Calls, guess_us: float) -> dict[str, dict[str, float]]:
    """Median and median deviation of each, microseconds a call: one slow round moves neither.

    A round is queued as a whole behind an untimed run, so that the time to launch is not measured.
    """
    count = max(2, min(50, int(_GRAPH_US / max(guess_us, 1.0))))
    graphs = {name: recorded(call, count) for name, call in calls.items()}
    us: dict[str, list[float]] = {name: [] for name in calls}
    for order in turns(tuple(calls), _REPEATS):
        graphs[order[-1]].replay()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(order) + 1)]
        events[0].record()
        for name, event in zip(order, events[1:], strict=True):
            graphs[name].replay()
            event.record()
        torch.cuda.synchronize()
        for name, (begin, end) in zip(order, pairwise(events), strict=True):
            us[name].append(begin.elapsed_time(end) * 1e3 / count)
    return {name: spread(times) for name, times in us.items()}


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, and the median distance from it."""
    middle = median(times)
    return {"us": round(middle, 2), "deviation_us": round(median(abs(t - middle) for t in times), 2)}


def relative_rms(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the difference, over that of what was expected."""
    expected = expected.float()
    return float((result.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def measure(module: str, dtype: torch.dtype) -> dict[str, Any]:
    """All of one shape in the layout of the kernel that vLLM chooses now."""
    from gptq_hybrid.packing import dequantize_symmetric
    from vllm_qwen36_plugin.prefill import dispatch
    from vllm_qwen36_plugin.prefill.kernel import FP8_SCALES, PrefillLinearKernel

    k, n, _ = MODULES[module]
    qweight, scales = random_weight(k, n, _GROUP, dtype, "cuda")
    begin = time.perf_counter()
    with vllm_config(prefill="fp8", prefill_scratch_mib=_SCRATCH_MIB):
        kernel, layer = build(qweight, scales, PrefillLinearKernel, _GROUP)
    torch.cuda.synchronize()
    prepared = time.perf_counter() - begin
    linear = dispatch.get(kernel.shape.key)
    assert linear is not None
    tensors = [getattr(layer, name) for name in kernel.names]
    weight = linear.weight(tensors, getattr(layer, FP8_SCALES, None))
    dense = dequantize_symmetric(qweight, scales, 4)
    result: dict[str, Any] = {
        "module": module,
        "shape": kernel.shape.key,
        "stock": type(kernel.stock).__name__,
        "paths": list(linear.routes),
        "starts": {"exact": linear.starts.exact, "fp8": linear.starts.fp8},
        "prepared_s": round(prepared, 2),
        "rows": [],
    }
    routes = linear.routes
    for count in _ROWS:
        x = torch.randn(count, k, device="cuda", dtype=dtype)
        expected = x[:256].float() @ dense.float().t()

        def served(routes: tuple[Any, ...], x: torch.Tensor = x) -> Any:
            linear.routes = routes
            return kernel.apply_weights(layer, x)

        calls: Calls = {"stock": lambda x=x: linear.stock(x, tensors)}
        for route in routes:
            calls[route] = lambda x=x, route=route: linear.run(route, x, weight)
        calls |= {"plugin": lambda x=x: served(("exact",), x), "plugin_fp8": lambda x=x: served(routes, x)}
        calls["cublas"] = lambda x=x: torch.nn.functional.linear(x, dense)
        entry: dict[str, Any] = {
            "m": count,
            "error": {name: round(relative_rms(call()[:256], expected), 5) for name, call in calls.items()},
            "times": graphed(calls, count * k * n / 1.5e8),
        }
        result["rows"].append(entry)
        times = "  ".join(f"{name} {times['us']:.1f}" for name, times in entry["times"].items())
        print(f"{kernel.shape.key} M {count}: {times}", flush=True)
    return result


def environment() -> dict[str, Any]:
    """Card and versions."""
    properties = torch.cuda.get_device_properties(0)
    return {**versions(), "cuda": torch.version.cuda, "multiprocessors": properties.multi_processor_count}


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "out")
    parser.add_argument("--layouts", nargs="+", default=["marlin", "machete"], choices=["marlin", "machete"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    args = parser.parse_args()
    os.environ["VLLM_PLUGINS"] = ""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    result: dict[str, Any] = {
        "environment": environment(),
        "settings": {"dtype": args.dtype, "group_size": _GROUP, "scratch_mib": _SCRATCH_MIB},
        "shapes": [],
    }
    for layout in args.layouts:
        if layout == "machete" and torch.cuda.get_device_capability() != (9, 0):
            continue
        # Read by vLLM each time it chooses.
        other = "" if layout == "machete" else "MacheteLinearKernel,"
        os.environ["VLLM_DISABLED_KERNELS"] = other + "HummingLinearKernel"
        for module in MODULES:
            result["shapes"].append(measure(module, dtype))
            save(args.out, result)
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
