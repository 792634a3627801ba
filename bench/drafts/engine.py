"""What drafts cost a decode step of the 27B: none, vLLM's own, and the plugin's. One GPU.

    python -m bench.drafts.engine OUT.json [--layers 16] [--variants none stock auto w8:65536@3] [--served]

The 27B with so many of its layers, made-up weights, W4A16 by Marlin as on an Ada card (``--kernel any``: by what
vLLM or the plugin chooses on this one), compiled, CUDA graphs, two MTP drafts a step. Every variant is a process of
its own:

    none, stock              vLLM alone: without MTP, and with it
    stock:fp8                with MTP and ``draft_lm_head_quantization``, from vLLM 0.33 on
    humming, humming:fp8     the same two where vLLM may not choose Machete: its best on this card
    auto, w4, w8, w8:65536 … the plugin's drafts: form of their weights, and after a colon the tokens drafted from;
                             `auto`, the default, has W8 linears and a copy of the output head in W4
    auto+verify, w4+verify   and that copy verifies greedy steps
    NAME@3, NAME@4           the same with three drafts a step, or four

What drafts cost is a variant less `none`.
Made-up heads agree on next to nothing, and steps are counted by vLLM's own metrics. OUT.json is written after each
variant; variants already in it with the same settings are kept unless named in --variants.

``--served`` has vLLM accept drafts at published rates and counts tokens a second by batch and context.
With ``--tensor-parallel-size 2`` two GPUs share the model; kernels are not counted then.
"""

from __future__ import annotations

import argparse
import gc
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.drafts.acceptance import DRAFTS, options
from bench.drafts.report import drafts_of, engine_tables
from bench.engine import (
    batch_of,
    environment,
    first_tokens,
    generate,
    kernels_between,
    prompts,
    set_up,
    start,
    vocabulary,
)
from bench.mini.engine import counters
from bench.results import Json
from bench.variants import engine_arguments, main, saving

VARIANTS = (
    "none", "stock", "stock:fp8", "humming", "humming:fp8", "auto", "w4", "w8", "fp8",
    "bf16:65536", "w4:65536", "w8:65536", "fp8:65536", "auto+verify", "w4+verify",
    "stock@3", "humming:fp8@3", "auto@3", "w8:65536@3", "w4:65536@3", "humming:fp8@4", "auto@4", "w4:65536@4",
)  # fmt: skip
_USUAL = ("none", "stock", "stock:fp8", "auto")
# Published for the 27B with four drafts (`gptq_hybrid.receipt.reference` says where), by position.
RATES = (0.763, 0.623, 0.459, 0.396)
# What other weights and fewer tokens keep of it with the small model, at the position that loses most.
KEPT = {"auto": 0.996, "w8:65536": 0.975, "w4:65536": 0.956}
_BATCHES, _NEW, _TINY_NEW = (1, 16), 128, 8
_PROMPTS = (1024, 2000)
# Requests and tokens of context of ``--served``, and the steps that are timed.
_SERVED, _TIMED, _MOST = ((1, 2048), (4, 2048), (16, 2048), (1, 30720), (4, 30720)), 64, 1100
# vLLM alone.
_PLAIN = ("none", "stock", "stock:fp8", "humming", "humming:fp8")


def start_variant(variant: str, args: argparse.Namespace, folder: Path) -> Any:
    """Install what the variant needs, and start the engine in this process."""
    set_up("humming" if variant.startswith("humming") else args.kernel)
    import torch

    from bench.dummy import fill_on_load, write_checkpoint

    # The variant is in vLLM's key of compiled graphs.
    additional: Json = {"drafts_bench": variant}
    if drafts_of(variant)[0] not in _PLAIN:
        import vllm_qwen36_plugin

        vllm_qwen36_plugin.register()
        _list_of_any_tokens()
        additional["qwen36"] = {
            **options(drafts_of(variant)[0], folder),
            "prefill": "auto" if args.kernel == "any" else "off",
        }
    if not torch.cuda.is_available():
        from vllm_qwen36_plugin.cpu.packed_weights import offer

        offer()  # vLLM has a 4-bit kernel for AVX-512 only
    fill_on_load(scaled=True)
    variant, count = drafts_of(variant)
    drafting: Json = {"draft_lm_head_quantization": "fp8"} if variant.endswith(":fp8") else {}
    if args.served and count and not args.tiny:
        rates = [rate * KEPT.get(variant.partition("+")[0], 1.0) for rate in RATES[:count]]
        drafting |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
    return start(
        write_checkpoint(folder / "checkpoint", args.layers, tiny=args.tiny),
        additional,
        args,
        # Tokens of a step: one a request, or with drafts so many more.
        graphs=sorted({1, 2, *(batch * (count + 1) for batch in (1, 4, 16))}),
        context=_SERVED[-1][1] + _MOST if args.served else None,
        drafts=count,
        drafting=drafting,
        log_stats=True,
    )


def _list_of_any_tokens() -> None:
    """There is no tokenizer, nor a token that is likelier than others."""
    from gptq_hybrid.checkpoint import DraftVocab
    from vllm_qwen36_plugin.draft_head import model

    def any_tokens(vllm_config: Any, settings: Any) -> DraftVocab | None:
        if not settings.vocabulary:
            return None
        size = vllm_config.model_config.hf_text_config.vocab_size
        return DraftVocab("0" * 64, size, tuple(range(0, size, 3)), {}, {})

    assert hasattr(model, "draft_list"), "the draft head reads its list by another name"
    model.draft_list = any_tokens


def measure(llm: Any, variant: str, args: argparse.Namespace) -> Json:
    """By batch: milliseconds a step on the clock and of kernels, and the share of drafts accepted."""
    size = vocabulary(llm)
    new = _TINY_NEW if args.tiny else _NEW
    result: Json = {}
    gc.collect()
    gc.freeze()
    for batch in _BATCHES:
        requests = batch_of(batch, size)
        one, many = partial(generate, llm, requests, 1), partial(generate, llm, requests, 1 + new)
        many()
        before = [] if variant == "none" else counters(llm)
        many()
        counted = [(b - a) / batch for a, b in zip(before, counters(llm) if before else [], strict=True)]
        count = counted[0] if counted else float(new)
        clock = []
        for _ in range(args.repeats):
            short = one()[0]
            clock.append(round((many()[0] - short) / count * 1e3, 4))
        kernels = kernels_between(one, many, count)
        result[str(batch)] = {
            "ms": clock,
            "steps": count,
            "accepted": counted[1:],
            "gpu_ms": kernels.get("total"),
            "kernels": kernels.get("kernels", {}),
        }
        print(
            f"{variant}, batch {batch}: {count:.1f} steps, ms a step: {' '.join(map(str, clock))}; "
            f"kernels {kernels.get('total')}",
            flush=True,
        )
    return result


def served(llm: Any, tiny: bool) -> Json:
    """By batch and context: milliseconds a step and tokens a second, of steps in which every request decodes."""
    from vllm import SamplingParams

    engine, result = llm.llm_engine, {}
    sampling = SamplingParams(temperature=0.0, max_tokens=_MOST, ignore_eos=True, detokenize=False)
    for batch, long in _SERVED:
        context = long // 64 if tiny else long
        came: dict[str, int] = {}

        def step(came: dict[str, int] = came) -> None:
            came.update((out.request_id, len(out.outputs[0].token_ids)) for out in engine.step())

        for number, prompt in enumerate(prompts([context] * batch, vocabulary(llm))):
            engine.add_request(f"{batch} {context} {number}", prompt, sampling)
        while len(came) < batch or min(came.values()) < 4:
            step()
        begin, before = time.perf_counter(), sum(came.values())
        for _ in range(_TIMED):
            step()
        seconds = time.perf_counter() - begin
        figures = {
            "step_ms": round(seconds / _TIMED * 1e3, 4),
            "tokens_a_second": round((sum(came.values()) - before) / seconds, 2),
        }
        result[f"{batch} x {context}"] = figures
        print(f"{batch} requests of {context} tokens: {figures}", flush=True)
        engine.abort_request(list(came))
        while engine.has_unfinished_requests():
            engine.step()
    return result


def bandwidth() -> float | None:
    """Bytes a second that the card reads and writes when it copies 1 GiB; None without a GPU."""
    import torch
    from triton.testing import do_bench

    if not torch.cuda.is_available():
        return None
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    milliseconds: float = do_bench(lambda: target.copy_(source))
    return 2 * source.numel() / milliseconds * 1e3


def run(variant: str, args: argparse.Namespace, folder: Path) -> Json:
    """Start, count, time one variant."""
    begin = time.perf_counter()
    llm = start_variant(variant, args, folder)
    started = time.perf_counter() - begin
    print(f"{variant}: started in {started:.0f} s", flush=True)
    return {
        "environment": environment(),
        "start_seconds": round(started, 1),
        "bandwidth": bandwidth(),
        "kv_cache_bytes": int(llm.llm_engine.engine_core.engine_core.available_gpu_memory_for_kv_cache),
        **({"ttft_ms": first_tokens(llm, _PROMPTS, args.repeats)} if not args.tiny else {}),
        "steps": measure(llm, variant, args),
        **({"served": served(llm, args.tiny)} if args.served else {}),
    }


def settings(args: argparse.Namespace) -> Json:
    """What runs must share to be compared."""
    return {
        "layers": args.layers,
        "tiny": args.tiny,
        "attention": args.attention,
        "memory": args.memory,
        "drafts": DRAFTS,
        "kernel": args.kernel,
        **({"rates": list(RATES)} if args.served else {}),
        **({"gpus": args.tensor_parallel_size} if args.tensor_parallel_size > 1 else {}),
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = engine_arguments(__doc__, VARIANTS, _USUAL, repeats=5, memory=0.85)
    parser.add_argument("--kernel", choices=["marlin", "any"], default="marlin")
    parser.add_argument("--served", action="store_true", help="from vLLM 0.33 on")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main("bench.drafts.engine", parsed(), saving(run, settings, VARIANTS), engine_tables)
