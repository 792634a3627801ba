"""Humming on activations of 8 bits and Marlin's words, rearranged at each call, against Marlin: on one GPU.

    python -m bench.prefill.eight_bit OUT.json [--kinds "int8 g128" "e4m3 g128"]

`Marlin int8` is vLLM's own kernel for such activations, on words repacked for it once: nothing is rearranged.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch

from bench.arguments import command_line
from bench.prefill import linear
from bench.prefill.results import MODULES
from bench.results import save
from gptq_hybrid.packing import dequantize_symmetric
from vllm_qwen36_plugin.prefill import humming, humming_8bit, scratch
from vllm_qwen36_plugin.prefill.shape import Shape

_DEVICE, _THEIRS = torch.device("cuda", 0), "Marlin int8"


def measure(shape: Shape, kinds: list[str]) -> dict[str, Any]:
    """One shape: microseconds a call in a CUDA graph, errors, and whether the words are Humming's own."""
    from vllm_qwen36_plugin.upstream.linear_kernels import kernel_named

    k, n = shape.k, shape.n
    weight = linear.random_weight(k, n, 128, torch.bfloat16, str(_DEVICE))
    marlin = kernel_named("MarlinLinearKernel", "CUDA", linear.kernel_config(k, n, 128, torch.bfloat16))
    kernel, layer = linear.build(*weight, marlin, 128)
    scratch.reserve(_DEVICE, scratch.word_bytes(k, n))
    calls: dict[str, Any] = {"Marlin": partial(kernel.apply_weights, layer)}
    result: dict[str, Any] = {"same_words": {}, "failed": {}, "us": {}, "error": {}}
    for name in (*kinds, _THEIRS):
        try:
            if name == _THEIRS:
                eight, repacked = linear.build(*weight, marlin, 128, act=torch.int8)
                call = partial(eight.apply_weights, repacked)
            else:
                made = humming_8bit.EightBitKernel(shape, name, _DEVICE)
                result["same_words"][name] = made.same_words(*weight, layer.qweight, layer.scales)
                call = partial(made, words=layer.qweight, scales=layer.scales)
            call(torch.ones(1, k, dtype=torch.bfloat16, device=_DEVICE))
            calls[name] = call
        except Exception as error:  # noqa: BLE001 - that a card lacks a kind is a result
            result["failed"][name] = repr(error)
    for rows in (256, 512, 1024, 2048, 4096, 8192):
        x = torch.randn(rows, k, device=_DEVICE, dtype=torch.bfloat16)
        exact = x[:256].float() @ dequantize_symmetric(*weight, 4).float().t()
        by_name = {name: partial(call, x) for name, call in calls.items()}
        result["us"][rows] = linear.graphed(by_name, rows * k * n / 1.5e8)
        result["error"][rows] = {name: linear.relative_rms(c(x)[:256], exact) for name, c in calls.items()}
    return result


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "out")
    parser.add_argument("--kinds", nargs="+", default=humming_8bit.SERVED, choices=humming_8bit.KINDS)
    args = parser.parse_args()
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_DISABLED_KERNELS": "MacheteLinearKernel,HummingLinearKernel"}
    shapes = {module: Shape("marlin", k, n, 4, 128, "bfloat16") for module, (k, n, _) in MODULES.items()}
    for name in args.kinds:
        for shape in shapes.values():
            humming.begin(shape, _DEVICE, humming_8bit.KINDS[name])
    with linear.vllm_config(prefill="off"):
        result: dict[str, Any] = {"environment": linear.environment(), "shapes": {}}
        for module, shape in shapes.items():
            result["shapes"][module] = measure(shape, args.kinds)
            print(module, result["shapes"][module], flush=True)
            save(args.out, result)


if __name__ == "__main__":
    main()
