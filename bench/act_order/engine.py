"""What act order costs a decode step of vLLM: its own (up to 0.29), the plugin's, and none. One GPU.

    python -m bench.act_order.engine OUT.json [--layers 64] [--variants none stock ours] [--seconds 580]

The 27B with so many of its layers, made-up weights, Marlin (Machete is turned off, so a Hopper card runs what an
Ada card would), compiled, CUDA graphs, no MTP. Every variant is a process of its own (`ours-gathered`: norms as
they were, and gathers behind them); OUT.json is written after each, and variants already in it with the same
settings are kept unless named in --variants. A step is the time for 129 tokens less the time for one, over 128: on
the clock, host included, and as the sum over its kernels.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from bench.act_order.report import VARIANTS, engine_table
from bench.engine import batch_of, decode_steps, generate, place, set_up, start, vocabulary
from bench.results import Json
from bench.variants import engine_arguments, main, saving

_STEPS, _SHOWN = 128, 8
_BATCHES = (1, 16)


def run(variant: str, args: argparse.Namespace, folder: Path) -> Json:
    """Start, count, time one variant."""
    set_up()
    import torch

    from bench.dummy import fill_on_load, random_order, write_checkpoint

    if variant.startswith("ours"):
        from vllm_qwen36_plugin.act_order import claim, method
        from vllm_qwen36_plugin.act_order.register import register

        claim.CLAIM_EVERYWHERE = True
        claim.FOLD_NORMS = "never" if variant == "ours-gathered" else "cuda"
        register()
        method.initial_g_idx = random_order
    if not torch.cuda.is_available():
        from vllm_qwen36_plugin.cpu.packed_weights import offer

        offer()  # vLLM has a 4-bit kernel for AVX-512 only
    loaded = fill_on_load(variant)
    begin = time.perf_counter()
    llm = start(
        write_checkpoint(folder / variant, args.layers, desc_act=variant != "none", tiny=args.tiny),
        {"act_order_bench": variant},
        args,
        graphs=(1, 2, 4, 16),
    )
    started = time.perf_counter() - begin
    config = llm.llm_engine.vllm_config
    layers = linears(loaded[-1], variant) if loaded else {}
    print(f"{variant}: started in {started:.0f} s, {layers}", flush=True)
    _, tokens = generate(llm, batch_of(_BATCHES[-1], vocabulary(llm)), _SHOWN)
    return {
        "environment": place(),
        "quantization": str(config.model_config.quantization),
        "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
        "layers": layers,
        "start_seconds": round(started, 1),
        **decode_steps(llm, _BATCHES, _STEPS, args.repeats),
        "tokens": tokens,
    }


def linears(model: Any, variant: str) -> dict[str, int]:
    """Count the linears that run each kernel, and those that permute their input when they run."""
    counts = {"linears": 0, "permuting": 0}
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "kernel", None)
        if kernel is None or not hasattr(module, "qweight"):
            continue
        name = f"{type(module.quant_method).__name__}, {type(kernel).__name__}"
        order = getattr(module, "act_order" if variant.startswith("ours") else "g_idx_sort_indices", None)
        counts["linears"] += 1
        counts["permuting"] += order is not None and order.numel() > 0
        counts[name] = counts.get(name, 0) + 1
    return counts


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What runs must share to be compared."""
    gpus = {"gpus": args.tensor_parallel_size} if args.tensor_parallel_size > 1 else {}
    return {
        "layers": args.layers,
        "tiny": args.tiny,
        "attention": args.attention,
        "steps": _STEPS,
        **gpus,
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = engine_arguments(__doc__, VARIANTS, VARIANTS, repeats=7, memory=0.6)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main("bench.act_order.engine", parsed(), saving(run, settings, VARIANTS), engine_table)
