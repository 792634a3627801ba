"""vLLM's own kernels on the same W4A16 weights of the 27B, by number of tokens, on one GPU. No plugin.

    python -m bench.prefill.kernels OUT.json

Machete where the card has it, Marlin, and Humming (vLLM 0.33 and later). Microseconds a call in a CUDA graph,
and seconds that the first calls take, most of them Humming's compiler.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from bench.arguments import command_line
from bench.prefill.linear import build, environment, graphed, kernel_config, random_weight, vllm_config
from bench.prefill.results import KERNEL_ROWS, MODULES
from bench.results import save

_GROUP = 128


def kernels(config: Any) -> dict[str, type]:
    """Those of vLLM's that take such a linear here, by the name of their library."""
    from vllm_qwen36_plugin.upstream.linear_kernels import kernel_named

    names = ("Machete", "Marlin", "Humming")
    found = {name: kernel_named(f"{name}LinearKernel", "CUDA", config) for name in names}
    return {name: kernel for name, kernel in found.items() if kernel is not None}


def measure(module: str, dtype: torch.dtype) -> dict[str, Any]:
    """One shape by every kernel."""
    k, n, _ = MODULES[module]
    weight = random_weight(k, n, _GROUP, dtype, "cuda")
    made, first = {}, {}
    for name, kernel in kernels(kernel_config(k, n, _GROUP, dtype)).items():
        made[name] = build(*weight, kernel, _GROUP)
        begin = time.perf_counter()
        for count in KERNEL_ROWS:
            made[name][0].apply_weights(made[name][1], torch.randn(count, k, device="cuda", dtype=dtype))
        torch.cuda.synchronize()
        first[name] = round(time.perf_counter() - begin, 2)
    rows = {}
    for count in KERNEL_ROWS:
        x = torch.randn(count, k, device="cuda", dtype=dtype)
        calls = {
            name: lambda kernel=kernel, layer=layer, x=x: kernel.apply_weights(layer, x)
            for name, (kernel, layer) in made.items()
        }
        times = graphed(calls, max(count, 16) * k * n / 1.5e8)
        rows[str(count)] = {name: spread["us"] for name, spread in times.items()}
        print(f"{module}, {count} tokens: {rows[str(count)]}", flush=True)
    return {"us": rows, "first_calls_s": first}


def main() -> None:
    """Command line."""
    args = command_line(__doc__, "out").parse_args()
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_DISABLED_KERNELS": ""}
    torch.manual_seed(0)
    result: dict[str, Any] = {"environment": environment(), "shapes": {}}
    with vllm_config(prefill="off"):
        for module in MODULES:
            result["shapes"][module] = measure(module, torch.bfloat16)
            save(args.out, result)


if __name__ == "__main__":
    main()
