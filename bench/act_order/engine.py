"""What act order costs a decode step of vLLM: its own (up to 0.29), the plugin's, and none. One GPU.

    python -m bench.act_order.engine OUT.json [--layers 64] [--variants none stock ours] [--seconds 580]

The 27B with so many of its layers, made-up weights, Marlin (Machete is turned off, so a Hopper card runs what an
Ada card would), compiled, CUDA graphs, no MTP. Every variant is a process of its own (`ours-norms`: with norms that
write in order); OUT.json is written after each, and variants already in it with the same settings are kept unless
named in --variants. A step is the time for 129 tokens less the time for one, over 128: on the clock, host included,
and as the sum over its kernels.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.act_order.results import VARIANTS, load, save
from bench.gpu_time import step_kernels

_PROMPT, _STEPS, _SHOWN = 32, 128, 8
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


def prompts(batch: int, vocabulary: int) -> list[dict[str, list[int]]]:
    """Token ids, different in each prompt."""
    rows = [
        [(7919 * (row + 1) + 104729 * i) % (vocabulary - 8) for i in range(_PROMPT)] for row in range(batch)
    ]
    return [{"prompt_token_ids": ids} for ids in rows]


def generate(llm: Any, given: list[dict[str, list[int]]], new: int) -> tuple[float, list[list[int]]]:
    """Seconds, and the tokens that came."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
    begin = time.perf_counter()
    outputs = llm.generate(given, sampling, use_tqdm=False)
    seconds = time.perf_counter() - begin
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    if any(len(ids) != new for ids in tokens):
        raise RuntimeError(f"vLLM stopped before {new} tokens")
    return seconds, tokens


def run(variant: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start, count, time one variant."""
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    os.environ["VLLM_DISABLED_KERNELS"] = "MacheteLinearKernel"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import torch

    from bench.act_order.dummy import act_order_layers, fill_on_load, random_order
    from gptq_hybrid.evaluate._environment import environment

    if variant in ("ours", "ours-norms"):
        from vllm_qwen36_plugin import _register
        from vllm_qwen36_plugin.act_order import claim, method

        claim.CLAIM_EVERYWHERE = True
        claim.FOLD_NORMS = "cuda" if variant == "ours-norms" else "never"
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


def call_variant(
    variant: str, argv: list[str], seconds: float, module: str = "bench.act_order.engine"
) -> str | None:
    """Run one variant of a module like this in a process of its own; why it failed, or None.

    Its compiled kernels and what Triton's autotuner found are kept for the next: left to itself PyTorch has them in
    a folder of each process, and vLLM tunes its Gated-DeltaNet kernels for 95 s in every one (0.26, torch 2.11).
    """
    command = [sys.executable, "-m", module, *argv, "--one", variant]
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir(), "bench-triton-cache")))
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"cut off after {seconds:.0f} s"
    return f"exit code {code}" if code else None


def drive(args: argparse.Namespace, argv: list[str]) -> dict[str, str]:
    """All variants one after another; by variant, why it failed."""
    begin, failed = time.monotonic(), {}
    before = load(args.out)
    if before:  # A run that fails now must not look like one that was made.
        before["runs"] = {name: run for name, run in before["runs"].items() if name not in args.variants}
        save(args.out, before)
    for variant in args.variants:
        left = args.seconds - (time.monotonic() - begin)
        print(f"--- {variant}, {left:.0f} s left", flush=True)
        reason = call_variant(variant, argv, left) if left > 10 else "no time left"
        if reason:
            failed[variant] = reason
            print(f"{variant}: {reason}", flush=True)
    return failed


def merge(path: Path, settings_: dict[str, Any], variant: str, found: dict[str, Any]) -> dict[str, Any]:
    """Add one run to the file; runs with other settings in it go."""
    before = load(path)
    runs = before["runs"] if before and before["settings"] == settings_ else {}
    merged = {**runs, variant: found}
    result = {"settings": settings_, "runs": {name: merged[name] for name in VARIANTS if name in merged}}
    save(path, result)
    return result


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seconds", type=float, default=580, help="for all variants together")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--attention", default="TRITON_ATTN")
    parser.add_argument("--memory", type=float, default=0.6, help="share of the card's memory")
    parser.add_argument("--tiny", action="store_true", help="a small model, eager: to try this out on a CPU")
    parser.add_argument("--one", choices=VARIANTS, help="this variant only, in this process")
    return parser.parse_args(arguments)


def main() -> None:
    """Command line."""
    args = parsed()
    if args.one:
        with tempfile.TemporaryDirectory() as folder:
            merge(args.out, settings(args), args.one, run(args.one, args, Path(folder)))
        return
    failed = drive(args, sys.argv[1:])
    result = load(args.out)
    if result and result["runs"]:
        from bench.act_order.tables import engine_table

        print(engine_table(result), flush=True)
    if failed:
        sys.exit(", ".join(f"{variant}: {reason}" for variant, reason in failed.items()))


if __name__ == "__main__":
    main()
