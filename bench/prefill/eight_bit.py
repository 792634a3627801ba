"""Humming on activations of 8 bits and Marlin's words, rearranged at each call, against Marlin: on one GPU.

python -m bench.prefill.eight_bit OUT.json
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


def measure(k: int, n: int) -> dict[str, Any]:
    """One shape: microseconds a call in a CUDA graph, errors, and whether the words are Humming's own."""
    from vllm_qwen36_plugin.prefill.humming_8bit import KINDS, EightBitKernel
    from vllm_qwen36_plugin.prefill.shape import Shape
    from vllm_qwen36_plugin.upstream.linear_kernels import kernel_named

    weight = linear.random_weight(k, n, 128, torch.bfloat16, "cuda")
    marlin = kernel_named("MarlinLinearKernel", "CUDA", linear.kernel_config(k, n, 128, torch.bfloat16))
    kernel, layer = linear.build(*weight, marlin, 128)
    scratch = torch.empty(k // 32, 4 * n, dtype=torch.int32, device="cuda")
    calls: dict[str, Any] = {"Marlin": partial(kernel.apply_weights, layer)}
    result: dict[str, Any] = {"same_words": {}, "failed": {}, "us": {}, "error": {}}
    for name, kind in KINDS.items():
        try:
            made = EightBitKernel(Shape("marlin", k, n, 4, 128, "bfloat16"), kind, layer.qweight.device)
            made(torch.ones(1, k, dtype=torch.bfloat16, device="cuda"), layer.qweight, layer.scales, scratch)
            result["same_words"][name] = made.same_words(*weight, scratch)
            calls[name] = partial(made, words=layer.qweight, scales=layer.scales, scratch=scratch)
        except Exception as error:  # noqa: BLE001 - that a card lacks a kind is a result
            result["failed"][name] = repr(error)
    for rows in (256, 512, 1024, 2048, 4096, 8192):
        x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
        exact = x[:256].float() @ dequantize_symmetric(*weight, 4).float().t()
        by_name = {name: partial(call, x) for name, call in calls.items()}
        result["us"][rows] = linear.graphed(by_name, rows * k * n / 1.5e8)
        result["error"][rows] = {name: linear.relative_rms(c(x)[:256], exact) for name, c in calls.items()}
    return result


def main() -> None:
    """Command line."""
    out = command_line(__doc__, "out").parse_args().out
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_DISABLED_KERNELS": "MacheteLinearKernel,HummingLinearKernel"}
    with linear.vllm_config(prefill="off"):
        shapes = {module: measure(k, n) for module, (k, n, _) in MODULES.items()}
        save(out, {"environment": linear.environment(), "shapes": shapes})


if __name__ == "__main__":
    main()
