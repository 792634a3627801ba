"""What the plugin's prefill brings a whole model: time to first token, decode steps, KV cache. One GPU.

    python -m bench.prefill.engine OUT.json [--layers 64] [--variants plugin a8 stock machete]

The 27B with so many of its layers, made-up weights, compiled, CUDA graphs, no MTP, prompts in one chunk. Variants,
every one a process of its own:

    plugin           this plugin with prefill=fp8, over Marlin (other kernels turned off); its ways `stock`, `exact`
                     and `fp8` are compared in the one process, in turns; it needs a GPU
    default          this plugin as it comes, no kernel turned off
    a8               the same with prefill=a8
    stock, humming   vLLM alone, with Marlin or Humming
    machete          vLLM alone, with what it chooses: Machete on Hopper
    bf16             vLLM alone, unquantized

With --graphs passes of up to 1,024 tokens are CUDA graphs too, whose launches cost the host next to nothing. A
graph keeps the way that it was recorded with: `exact` and `fp8` are processes of their own there, over Marlin.

OUT.json is written after each figure, so a run that is cut off keeps what it has (``"complete": false``). Variants
already in it with the same settings are kept unless named in --variants. What should not be (a way that was not
taken, logits that are no numbers) is written as a problem; the figures are taken all the same.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench import engine
from bench.dummy import fill_on_load, write_checkpoint
from bench.prefill import ways as timing
from bench.prefill.report import engine_report
from bench.prefill.results import A8, DEFAULT, GRAPHED, PLUGIN, VARIANTS, lengths
from bench.prefill.ways import OneWay, Ways, kernel_names, layers_by_shape
from bench.results import Json, merge
from bench.variants import engine_arguments, main

_BATCHES, _STEPS = (1, 16), 128
# What matters most comes first: a run may be cut off.
_CASES = ("1024", "8192", "2048", "512", "4096", "4x512", "173+390+634+851")
_TOKENS = 8192
# Sizes that vLLM records by itself end at 512.
_GRAPHS, _GRAPH_CASES = (1, 2, 4, 16, 256, 512, 1024), ("1024", "512", "256")
# A CPU gets through these; between them they take every way.
_TINY_CASES, _TINY_TOKENS, _TINY_STEPS = ("64", "24", "96", "3x16"), 512, 4
_OURS = (PLUGIN, DEFAULT, A8, *GRAPHED)


def start(variant: str, args: argparse.Namespace, folder: Path) -> Any:
    """The engine in this process."""
    options: Json = {"prefill_bench": variant}
    if variant in _OURS:
        # Drafts as without the plugin: what they verify in one call would differ otherwise.
        routes = {PLUGIN: "fp8", DEFAULT: "auto"}
        options["qwen36"] = {"prefill": routes.get(variant, variant), "draft": "bf16"}
    tokens = _TINY_TOKENS if args.tiny else _TOKENS
    return engine.start(
        write_checkpoint(folder / variant, args.layers, quantized=variant != "bf16", tiny=args.tiny),
        options,
        args,
        graphs=_GRAPHS if args.graphs else _GRAPHS[:4],
        tokens=tokens,
        context=tokens + 256,
    )


def set_up(variant: str, folder: Path) -> None:
    """Environment and plugin, before the engine is made.

    The plugin is installed as vLLM does it, but from here: entry points need an installed distribution. Profiles go
    to ``folder``, so that every process measures its own.
    """
    engine.set_up({DEFAULT: "any", A8: "any", "machete": "any", "humming": "humming"}.get(variant, "marlin"))
    if variant in _OURS:
        import vllm_qwen36_plugin

        os.environ["QWEN36_CACHE"] = str(folder / "cache")
        vllm_qwen36_plugin.register()
    else:
        import torch

        if not torch.cuda.is_available():
            from vllm_qwen36_plugin.cpu.packed_weights import offer

            offer()  # vLLM has a 4-bit kernel for AVX-512 only


def run(variant: str, args: argparse.Namespace, folder: Path) -> None:
    """Start one variant and take its figures, each written when it is there."""
    set_up(variant, folder)
    record: Json = {"complete": False}
    ways: OneWay | Ways = OneWay(variant)

    def keep(**figures: Any) -> None:
        record.update(figures)
        if ways.problems:
            record["problems"] = ways.problems
        merge(args.out, settings(args), VARIANTS, variant, record)

    loaded = fill_on_load(scaled=True) if variant != "bf16" else []
    preparation = Preparation().watch()
    begin = time.perf_counter()
    llm = start(variant, args, folder)
    started = time.perf_counter() - begin
    seconds = {"start": round(started, 1), "process_weights": round(preparation.seconds, 2)}
    keep(environment=engine.environment(), seconds=seconds, **engine_facts(llm))
    if loaded:
        keep(kernels=kernel_names(loaded[-1]))
    if variant in _OURS:
        from vllm_qwen36_plugin.prefill import banner, dispatch

        if variant == PLUGIN:
            ways = Ways(dispatch.linears(), layers_by_shape(loaded[-1]))
        facts = plugin_facts(loaded[-1])
        keep(seconds={**seconds, "measuring": facts.pop("measuring")}, plugin=facts)
    print(
        f"{variant}: started in {started:.0f} s; ways {', '.join(ways.names)}; {record.get('kernels')}",
        flush=True,
    )
    for _ in range(8 if variant == A8 else 0):  # the guard decides in the first passes
        engine.generate(llm, engine.prompts((2048,), engine.vocabulary(llm)), 1)
    take(llm, ways, args, engine.vocabulary(llm), keep)
    if variant in _OURS:
        host = dispatch.pace()
        served = {linear.shape.key: dict(linear.served) for linear in dispatch.linears()}
        last = {"eager_from": host.eager_from, "layer_us": host.layer_us, "served": served}
        keep(plugin={**facts, **last, "guard": banner.guard_line(dispatch.guard())})
    keep(complete=True)
    if ways.problems:
        sys.exit(f"{len(ways.problems)} problems, see above")


def take(llm: Any, ways: OneWay | Ways, args: argparse.Namespace, vocabulary: int, keep: Any) -> None:
    """First tokens by way and case, then decode steps by batch."""
    cases = _TINY_CASES if args.tiny else _GRAPH_CASES if args.graphs else _CASES
    keep(first_choice=timing.first_choice(llm, ways, cases[0], vocabulary))
    gc.collect()
    gc.freeze()
    ttft: dict[str, dict[str, list[float]]] = {way: {} for way in ways.names}
    taken: dict[str, dict[str, dict[str, str]]] = {way: {} for way in ways.names}
    for case in cases:
        tokens = sum(lengths(case))
        for way, times in timing.first_tokens(llm, ways, case, args.repeats, vocabulary).items():
            ttft[way][case], taken[way][case] = times, ways.taken(way, tokens)
            print(f"{case}, {way}: ms to first token: {' '.join(map(str, times))}", flush=True)
        keep(ttft_ms=ttft, taken=taken)
    ttft_gpu_ms: dict[str, Json] = {}
    for case in cases[:2]:
        ttft_gpu_ms[case] = timing.kernels_of_a_first_token(llm, ways, case, vocabulary)
        keep(ttft_gpu_ms=ttft_gpu_ms)
    # 128 steps average out what a single first token does not.
    with ways.through(ways.usual):
        keep(
            **engine.decode_steps(llm, _BATCHES, _TINY_STEPS if args.tiny else _STEPS, args.repeats // 2 + 1)
        )


def engine_facts(llm: Any) -> Json:
    """KV cache, memory and modes of a started engine; a figure is missing where this vLLM does not have it."""
    config = llm.llm_engine.vllm_config
    core = llm.llm_engine.engine_core.engine_core
    worker = core.model_executor.driver_worker.worker
    memory = {
        "weights": getattr(worker.model_runner, "model_memory_usage", None),
        "peak_activation": getattr(worker, "peak_activation_memory", None),
        "non_torch": getattr(worker, "non_torch_memory", None),
        "cuda_graphs": getattr(worker, "cudagraph_memory_estimate", None),
    }
    return {
        "quantization": str(config.model_config.quantization),
        "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
        "compile_seconds": round(config.compilation_config.compilation_time, 1),
        "kv_cache": {
            "bytes": int(core.available_gpu_memory_for_kv_cache),
            "blocks": config.cache_config.num_gpu_blocks,
            "tokens": getattr(config.cache_config, "kv_cache_size_tokens", None),
        },
        "memory": {name: int(value) for name, value in memory.items() if value is not None},
    }


def plugin_facts(model: Any) -> Json:
    """What the plugin found and took at start: its line, its profile, its bytes."""
    from vllm_qwen36_plugin.prefill import banner, dispatch, prepare, profile, scratch
    from vllm_qwen36_plugin.prefill.kernel import FP8_SCALES

    preparation = prepare.latest()
    assert preparation is not None
    linears = dispatch.linears()
    line = banner.table_line(linears, preparation.settings, preparation.source)
    print(line, flush=True)
    scales = [getattr(module, FP8_SCALES, None) for module in model.modules()]
    return {
        "measuring": round(preparation.seconds, 2),
        "banner": line,
        "orders": {linear.shape.key: list(linear.routes) for linear in linears},
        "profile": profile.to_json(preparation.profile) if preparation.profile else None,
        "scratch_bytes": scratch.reserved(next(model.parameters()).device),
        "fp8_scale_bytes": sum(scale.numel() * scale.element_size() for scale in scales if scale is not None),
    }


class Preparation:
    """Seconds that vLLM spends on loaded weights: repacking, and the plugin's test and times."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self) -> Preparation:
        """From now on."""
        from vllm.model_executor.model_loader import base_loader

        inner = base_loader.process_weights_after_loading

        def process(*args: Any, **kwargs: Any) -> None:
            engine.wait()
            begin = time.perf_counter()
            inner(*args, **kwargs)
            engine.wait()
            self.seconds += time.perf_counter() - begin

        base_loader.process_weights_after_loading = process
        return self


def settings(args: argparse.Namespace) -> Json:
    """What runs must share to be compared."""
    return {
        "layers": args.layers,
        "tiny": args.tiny,
        "attention": args.attention,
        "memory": args.memory,
        "tokens": _TINY_TOKENS if args.tiny else _TOKENS,
        "steps": _TINY_STEPS if args.tiny else _STEPS,
        "graphs": args.graphs,
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    usual = (PLUGIN, DEFAULT, "stock", "humming", "machete", "bf16")
    parser = engine_arguments(__doc__, VARIANTS, usual, repeats=7, memory=0.85)
    parser.add_argument(
        "--graphs", action="store_true", help="CUDA graphs for prefill too; variants stock, exact, fp8"
    )
    args = parser.parse_args(arguments)
    if PLUGIN in args.variants and args.graphs:
        parser.error(f"{PLUGIN}: its ways take turns, and a graph has one; name exact, fp8")
    return args


if __name__ == "__main__":
    main("bench.prefill.engine", parsed(), run, engine_report)
