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
import gc
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.act_order.results import VARIANTS
from bench.act_order.tables import engine_table
from bench.generate import generate, prompts
from bench.gpu_time import step_kernels
from bench.results import merge
from bench.variants import add_arguments, main

_STEPS, _SHOWN = 128, 8
_BATCHES = (1, 16)


def start(variant: str, args: argparse.Namespace, folder: Path) -> Any:
    """The engine in this process."""
    import torch
    from vllm import LLM

    from bench.act_order.dummy import write_checkpoint

    checkpoint = write_checkpoint(folder / variant, args.layers, desc_act=variant != "none", tiny=args.tiny)
    extra: dict[str, Any] = {}
    if torch.cuda.is_available():
        extra = {
            "gpu_memory_utilization": args.memory,
            "attention_backend": args.attention,
            "gdn_prefill_backend": "triton",
            "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 16]},
        }
    if args.tiny:
        extra["enforce_eager"] = True
    return LLM(
        model=str(checkpoint),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=16,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        # The host's share of a step then adds to the card's rather than hiding part of it.
        async_scheduling=False,
        limit_mm_per_prompt={"image": 0, "video": 0},
        # In vLLM's key of compiled graphs, which knows nothing of linear methods.
        additional_config={"act_order_bench": variant},
        **extra,
    )


def run(variant: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start, count, time one variant."""
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    os.environ["VLLM_DISABLED_KERNELS"] = "MacheteLinearKernel"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import torch

    from bench.act_order.dummy import act_order_layers, fill_on_load, random_order
    from gptq_hybrid.evaluate._environment import environment

    if variant.startswith("ours"):
        from vllm_qwen36_plugin import _register
        from vllm_qwen36_plugin.act_order import claim, method

        claim.CLAIM_EVERYWHERE = True
        claim.FOLD_NORMS = "never" if variant == "ours-gathered" else "cuda"
        _register._install_act_order()
        method.initial_g_idx = random_order
    if not torch.cuda.is_available():
        import vllm_qwen36_plugin.cpu_int4.models  # noqa: F401 - vLLM has a 4-bit kernel for AVX-512 only
    loaded = fill_on_load(variant)
    begin = time.perf_counter()
    llm = start(variant, args, folder)
    started = time.perf_counter() - begin
    config = llm.llm_engine.vllm_config
    layers = act_order_layers(loaded[-1], variant)
    print(f"{variant}: started in {started:.0f} s, {layers}", flush=True)
    vocabulary = config.model_config.hf_text_config.vocab_size
    many = prompts(_BATCHES[-1], vocabulary)
    _, tokens = generate(llm, many, _SHOWN)
    step_ms: dict[str, list[float]] = {}
    step_gpu_ms: dict[str, dict[str, Any]] = {}
    gc.collect()
    gc.freeze()
    for batch in _BATCHES:
        given = prompts(batch, vocabulary)
        generate(llm, given, 1 + _STEPS)
        found = []
        for _ in range(args.repeats):
            one, _ = generate(llm, given, 1)
            all_, _ = generate(llm, given, 1 + _STEPS)
            found.append(round((all_ - one) / _STEPS * 1e3, 4))
        step_ms[str(batch)] = found
        step_gpu_ms[str(batch)] = step_kernels(
            partial(generate, llm, given, 1), partial(generate, llm, given, 1 + _STEPS), _STEPS
        )
        on_gpu = step_gpu_ms[str(batch)].get("total")
        print(
            f"{variant}: batch {batch}, ms a step: {' '.join(map(str, found))}; kernels {on_gpu}", flush=True
        )
    return {
        "environment": environment("cuda:0" if torch.cuda.is_available() else "cpu"),
        "quantization": str(config.model_config.quantization),
        "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
        "layers": layers,
        "start_seconds": round(started, 1),
        "step_ms": step_ms,
        "step_gpu_ms": step_gpu_ms,
        "tokens": tokens,
    }


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What runs must share to be compared."""
    return {"layers": args.layers, "tiny": args.tiny, "attention": args.attention, "steps": _STEPS}


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, VARIANTS, VARIANTS)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--attention", default="TRITON_ATTN")
    parser.add_argument("--memory", type=float, default=0.6, help="share of the card's memory")
    parser.add_argument("--tiny", action="store_true", help="a small model, eager: to try this out on a CPU")
    return parser.parse_args(arguments)


def keep(variant: str, args: argparse.Namespace, folder: Path) -> None:
    """Run one variant and write its figures."""
    merge(args.out, settings(args), VARIANTS, variant, run(variant, args, folder))


if __name__ == "__main__":
    main("bench.act_order.engine", parsed(), keep, engine_table)
