"""A W4A16 linear of the 27B by each route and number of tokens, on one GPU.

    python -m bench.prefill.linear OUT.json [--layouts marlin machete] [--dtype bfloat16] [--rows 1 16 …]

For each shape, with random weights of both signs, repacked by vLLM's own kernel:

    expand, fill         writing the dense weight of one tile of the scratch; filling so many bytes
    stock                vLLM's kernel
    exact, fp8           each route, for any number of tokens
    plugin, plugin_fp8   what is served with prefill=auto and prefill=fp8: the op, with the starts found at start-up
    cublas               a dense weight that was there all along

Microseconds a call in a CUDA graph, so without the host's share (`host.py` has that). Medians of rounds in which
the variants take turns. Errors are root mean squares against float32, relative.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.gpu_time import in_turns, recorded, spread
from bench.prefill.layers import MODULES, Module, build, random_weight, vllm_config
from bench.results import save

_GROUP = 128
_ROWS = (1, 3, 16, 64, 128, 192, 256, 384, 512, 768, 1000, 1024, 1500, 2048, 3000, 4096, 8192)
# Of one graph, about; a round is as many of these as there are variants.
_GRAPH_US = 4000.0
_REPEATS = 9
Calls = dict[str, Callable[[], Any]]


def graphed(calls: Calls, guess_us: float, repeats: int = _REPEATS) -> dict[str, dict[str, float]]:
    """Median and median deviation of each, microseconds a call."""
    count = max(2, min(50, int(_GRAPH_US / max(guess_us, 1.0))))
    runs = {name: recorded([call] * count, "cuda") for name, call in calls.items()}
    found = {}
    for name, seconds in in_turns(runs, repeats, "cuda").items():
        middle, off = spread([value / count * 1e6 for value in seconds])
        found[name] = {"us": round(middle, 2), "deviation_us": round(off, 2)}
    return found


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the difference, over that of what was expected."""
    expected = expected.float()
    return float((found.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def expansion(linear: Any, weight: Any) -> dict[str, Any]:
    """Times to write the largest tile, by the type that is written, beside a fill of the same bytes."""
    from vllm_qwen36_plugin.prefill import paths, scratch

    shape, found = linear.shape, {}
    for name, dtype, inverse in (
        ("exact", getattr(torch, shape.dtype), None),
        ("fp8", paths.FP8, weight.fp8[0] if weight.fp8 is not None else None),
    ):
        if name == "fp8" and inverse is None:
            continue
        tile = scratch.tiles(weight.words.device, shape.k, shape.n, dtype)[0]
        plain = tile.dense.view(torch.uint8).view(torch.int32)
        calls: Calls = {
            "expand": lambda tile=tile, inverse=inverse: paths.unpack(weight, tile.dense, 0, shape, inverse),
            "fill": lambda plain=plain: plain.fill_(1),
        }
        times = graphed(calls, tile.dense.numel() * tile.dense.element_size() / 3e6)
        found[name] = {
            "columns": tile.last,
            "bytes": plain.numel() * 4,
            **{n: t["us"] for n, t in times.items()},
        }
    return found


def measure(module: Module, dtype: torch.dtype, rows: list[int], args: argparse.Namespace) -> dict[str, Any]:
    """All of one shape in the layout of the kernel that vLLM chooses now."""
    from vllm_qwen36_plugin.packed import dequantize_words
    from vllm_qwen36_plugin.prefill import dispatch
    from vllm_qwen36_plugin.prefill.kernel import FP8_SCALES, RowDispatchKernel

    qweight, scales = random_weight(module.k, module.n, _GROUP, dtype, "cuda")
    begin = time.perf_counter()
    with vllm_config(prefill="fp8", prefill_scratch_mib=args.scratch_mib):
        kernel, layer = build(qweight, scales, RowDispatchKernel, _GROUP)
    torch.cuda.synchronize()
    prepared = time.perf_counter() - begin
    linear = dispatch.get(kernel.shape.key)
    assert linear is not None
    tensors = [getattr(layer, name) for name in kernel.names]
    weight = linear.weight(tensors, getattr(layer, FP8_SCALES, None))
    dense = dequantize_words(qweight, scales, 4)
    result: dict[str, Any] = {
        "module": module.name,
        "shape": kernel.shape.key,
        "stock": type(kernel.stock).__name__,
        "paths": list(linear.order),
        "starts": {"exact": linear.starts.exact, "fp8": linear.starts.fp8},
        "prepared_s": round(prepared, 2),
        "expansion": expansion(linear, weight),
        "rows": [],
    }
    wanted = linear.order
    for count in rows:
        x = torch.randn(count, module.k, device="cuda", dtype=dtype)
        expected = x[:256].float() @ dense.float().t()

        def served(order: tuple[Any, ...], x: torch.Tensor = x) -> Any:
            linear.order = order
            return kernel.apply_weights(layer, x)

        calls: Calls = {"stock": lambda x=x: linear.stock(x, tensors)}
        for path in wanted:
            calls[path] = lambda x=x, path=path: linear.run(path, x, weight)
        calls |= {"plugin": lambda x=x: served(("exact",), x), "plugin_fp8": lambda x=x: served(wanted, x)}
        calls["cublas"] = lambda x=x: torch.nn.functional.linear(x, dense)
        entry: dict[str, Any] = {
            "m": count,
            "error": {name: round(relative_rms(call()[:256], expected), 5) for name, call in calls.items()},
            "times": graphed(calls, count * module.k * module.n / 1.5e8),
        }
        result["rows"].append(entry)
        times = "  ".join(f"{name} {found['us']:.1f}" for name, found in entry["times"].items())
        print(f"{kernel.shape.key} M {count}: {times}", flush=True)
    return result


def environment() -> dict[str, Any]:
    """Card and versions."""
    from bench.engine import environment as versions

    properties = torch.cuda.get_device_properties(0)
    return {
        **versions(),
        "cuda": torch.version.cuda,
        "multiprocessors": properties.multi_processor_count,
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--layouts", nargs="+", default=["marlin", "machete"], choices=["marlin", "machete"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--rows", type=int, nargs="+", default=list(_ROWS))
    names = [module.name for module in MODULES]
    parser.add_argument("--modules", nargs="+", default=names, choices=names, metavar="MODULE")
    parser.add_argument("--scratch-mib", type=int, default=128)
    return parser.parse_args(arguments)


def main() -> None:
    """Command line."""
    args = parsed()
    os.environ["VLLM_PLUGINS"] = ""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    result: dict[str, Any] = {
        "environment": environment(),
        "settings": {"dtype": args.dtype, "group_size": _GROUP, "scratch_mib": args.scratch_mib},
        "shapes": [],
    }
    for layout in args.layouts:
        if layout == "machete" and torch.cuda.get_device_capability() != (9, 0):
            continue
        # Read by vLLM each time it chooses.
        os.environ["VLLM_DISABLED_KERNELS"] = "" if layout == "machete" else "MacheteLinearKernel"
        for module in (module for module in MODULES if module.name in args.modules):
            result["shapes"].append(measure(module, dtype, args.rows, args))
            save(args.out, result)
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
