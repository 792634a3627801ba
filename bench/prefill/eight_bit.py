"""Humming on activations of 8 bits and Marlin's words, rearranged at each call, against Marlin: on one GPU.

    python -m bench.prefill.eight_bit OUT.json [--kinds "int8 g128" "e4m3 g128"]

`Marlin int8` is vLLM's own kernel for such activations, on words that were repacked for it once: a token has one
scale, and the weight's scales are rounded to 4,096 steps. Its time leaves out what rearranging would cost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from bench.arguments import command_line
from bench.prefill import linear
from bench.prefill.results import MODULES
from bench.results import save
from gptq_hybrid.packing import dequantize_symmetric

_DEVICE = "cuda"


def measure(k: int, n: int, kinds: Sequence[str]) -> dict[str, Any]:
    """One shape: microseconds a call in a CUDA graph, errors, and whether the words are Humming's own."""
    from vllm_qwen36_plugin.prefill import humming_8bit, scratch
    from vllm_qwen36_plugin.upstream.linear_kernels import kernel_named

    weight, device = linear.random_weight(k, n, 128, torch.bfloat16, _DEVICE), torch.device(_DEVICE, 0)
    marlin = kernel_named("MarlinLinearKernel", "CUDA", linear.kernel_config(k, n, 128, torch.bfloat16))
    kernel, layer = linear.build(*weight, marlin, 128)
    scratch.reserve(layer.qweight.device, scratch.word_bytes(k, n))
    calls: dict[str, Any] = {"Marlin": partial(kernel.apply_weights, layer)}
    result: dict[str, Any] = {"same_words": {}, "failed": {}, "us": {}, "error": {}, "compiled_s": {}}

    def tried(name: str, make: Any) -> None:
        begin = time.perf_counter()
        try:
            call = make()
            call(torch.ones(1, k, dtype=torch.bfloat16, device=device))
            torch.cuda.synchronize()
            calls[name] = call
        except Exception as error:  # noqa: BLE001 - that a card lacks a kind is a result
            result["failed"][name] = repr(error)
        result["compiled_s"][name] = round(time.perf_counter() - begin, 2)

    def ours(name: str) -> Any:
        made = humming_8bit.EightBitKernel(shape_of(k, n), name, device)
        result["same_words"][name] = made.same_words(*weight, layer.qweight, layer.scales)
        return partial(made, words=layer.qweight, scales=layer.scales)

    def theirs() -> Any:
        eight, repacked = linear.build(*weight, marlin, 128, act=torch.int8)
        return partial(eight.apply_weights, repacked)

    for name in kinds:
        tried(name, partial(ours, name))
    tried("Marlin int8", theirs)
    for rows in (256, 512, 1024, 2048, 4096, 8192):
        x = torch.randn(rows, k, device=_DEVICE, dtype=torch.bfloat16)
        exact = x[:256].float() @ dequantize_symmetric(*weight, 4).float().t()
        by_name = {name: partial(call, x) for name, call in calls.items()}
        result["us"][rows] = linear.graphed(by_name, rows * k * n / 1.5e8)
        result["error"][rows] = {name: linear.relative_rms(c(x)[:256], exact) for name, c in calls.items()}
    return result


def shape_of(k: int, n: int) -> Any:
    """As the plugin calls it."""
    from vllm_qwen36_plugin.prefill.shape import Shape

    return Shape("marlin", k, n, 4, 128, "bfloat16")


def main() -> None:
    """Command line."""
    from vllm_qwen36_plugin.prefill import humming, humming_8bit

    parser = command_line(__doc__, "out")
    parser.add_argument("--kinds", nargs="+", default=humming_8bit.SERVED, choices=humming_8bit.KINDS)
    args = parser.parse_args()
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_DISABLED_KERNELS": "MacheteLinearKernel,HummingLinearKernel"}
    result: dict[str, Any] = {"shapes": {}}
    with linear.vllm_config(prefill="off"):
        result["environment"] = linear.environment()
        for name in args.kinds:
            for k, n, _ in MODULES.values():
                humming.begin(shape_of(k, n), torch.device(_DEVICE, 0), humming_8bit.KINDS[name])
        for module, (k, n, _) in MODULES.items():
            result["shapes"][module] = measure(k, n, args.kinds)
            print(module, result["shapes"][module], flush=True)
            save(args.out, result)


if __name__ == "__main__":
    main()
