"""A vLLM engine of the 27B's shapes with made-up weights, and what is timed of it.

Shared by `bench.act_order.engine`, `bench.drafts.engine` and `bench.prefill.engine`: they differ in what they
install before the start and in which steps they count.
"""

from __future__ import annotations

import gc
import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.results import Json

MINI = Path(__file__).with_name("mini")
_PROMPT, _MINI_PROMPT = 32, 64
# Of a step's kernels, so many are kept by name: enough to see every GEMM.
_NAMED = 24
Prompts = list[dict[str, list[int]]]


# Kernels that vLLM may not choose, so that a Hopper card runs Marlin as an Ada card does, or Humming; ``any``: all.
_DISABLED = {
    "marlin": "MacheteLinearKernel,HummingLinearKernel",
    "humming": "MacheteLinearKernel",
    "any": "",
}


def set_up(kernel: str = "marlin") -> None:
    """Set vLLM's environment, before it is imported: no plugins but those installed by hand, one process."""
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["VLLM_DISABLED_KERNELS"] = _DISABLED[kernel]
    # Workers of several GPUs are forked: what was installed by hand is in them. So nothing may touch a GPU before.
    os.environ |= {"VLLM_WORKER_MULTIPROC_METHOD": "fork", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def start(
    checkpoint: Path,
    options: Json,
    args: Namespace,
    *,
    graphs: Sequence[int],
    tokens: int = 2048,
    context: int | None = None,
    drafts: int = 0,
    drafting: Json | None = None,
    log_stats: bool = False,
) -> Any:
    """Start the engine in this process.

    ``options`` is vLLM's ``additional_config``. It is part of the key of compiled graphs, which knows nothing
    of kernels or linear methods: name the variant in it. ``args``: those of `bench.variants.engine_arguments`.
    ``graphs``: numbers of tokens recorded as CUDA graphs. ``drafting``: more of vLLM's ``speculative_config``.
    """
    import torch
    from vllm import LLM

    extra: Json = {}
    if torch.cuda.is_available():
        extra = {
            "gpu_memory_utilization": args.memory,
            "attention_backend": args.attention,
            "gdn_prefill_backend": "triton",
            "compilation_config": {"cudagraph_capture_sizes": list(graphs)},
        }
    if args.tiny:
        extra["enforce_eager"] = True
    if args.tensor_parallel_size > 1:
        extra["tensor_parallel_size"] = args.tensor_parallel_size
    if drafts:
        extra["speculative_config"] = {"method": "mtp", "num_speculative_tokens": drafts} | (drafting or {})
    if log_stats:
        extra["disable_log_stats"] = False
    return LLM(
        model=str(checkpoint),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=context or tokens,
        max_num_seqs=16,
        max_num_batched_tokens=tokens,
        enable_prefix_caching=False,
        # The host's share of a step then adds to the card's rather than hiding part of it.
        async_scheduling=False,
        limit_mm_per_prompt={"image": 0, "video": 0},
        additional_config=options,
        **extra,
    )


def place() -> dict[str, str]:
    """Card or processor, and versions."""
    import torch

    from gptq_hybrid.common.machine import environment

    return environment("cuda:0" if torch.cuda.is_available() else "cpu")


def environment() -> dict[str, str]:
    """The same with the versions of Triton and the driver."""
    import torch

    from vllm_qwen36_plugin.prefill import measure

    result = place()
    result["triton"] = measure.versions()["triton"]
    if torch.cuda.is_available():
        result["driver"] = measure.card(torch.device("cuda:0"), 0).driver
    return result


def vocabulary(llm: Any) -> int:
    """Tokens of the engine's vocabulary."""
    return int(llm.llm_engine.vllm_config.model_config.hf_text_config.vocab_size)


def prompts(lengths: Sequence[int], size: int) -> Prompts:
    """Prompts of token ids below ``size``, different in each."""
    return [
        {"prompt_token_ids": [(7919 * (row + 1) + 104729 * i) % (size - 8) for i in range(length)]}
        for row, length in enumerate(lengths)
    ]


def mini_prompts(checkpoint: Path, a_domain: int) -> dict[str, list[list[int]]]:
    """The first 64 tokens of so many held-out documents of each domain of the mini model."""
    from transformers import AutoTokenizer

    tokenizer, by_domain = AutoTokenizer.from_pretrained(checkpoint), {}
    for file in sorted((MINI / "heldout").glob("*.jsonl")):
        rows = [json.loads(line) for line in file.open(encoding="utf-8")]
        ids = [tokenizer(row["text"])["input_ids"] for row in rows if "text" in row]
        if long := [x[:_MINI_PROMPT] for x in ids if len(x) > _MINI_PROMPT][:a_domain]:
            by_domain[file.stem] = long
    return by_domain


def batch_of(batch: int, size: int) -> Prompts:
    """So many short prompts, for decode steps."""
    return prompts([_PROMPT] * batch, size)


def generate(llm: Any, batch: Prompts, new: int) -> tuple[float, list[list[int]]]:
    """Seconds, and the tokens that came.

    Raises:
        RuntimeError: fewer than ``new`` tokens came.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
    begin = time.perf_counter()
    outputs = llm.generate(batch, sampling, use_tqdm=False)
    seconds = time.perf_counter() - begin
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    if any(len(ids) != new for ids in tokens):
        raise RuntimeError(f"vLLM stopped before {new} tokens")
    return seconds, tokens


def turns(names: tuple[str, ...], repeats: int) -> list[tuple[str, ...]]:
    """Rounds of all names, each starting with the next one: clock and temperature drift meet all of them."""
    return [names[i % len(names) :] + names[: i % len(names)] for i in range(repeats)]


def first_tokens(llm: Any, lengths: Sequence[int], repeats: int) -> Json:
    """Milliseconds to the first token of a prompt alone, by its length; the first of each length is left out."""
    times: Json = {}
    for length in lengths:
        each = [generate(llm, prompts([length], vocabulary(llm)), 1)[0] for _ in range(repeats + 1)]
        times[str(length)] = [round(seconds * 1e3, 2) for seconds in each[1:]]
        print(f"{length} tokens: ms to the first: {' '.join(map(str, times[str(length)]))}", flush=True)
    return times


def decode_steps(llm: Any, batches: Sequence[int], count: int, repeats: int) -> Json:
    """Milliseconds a decode step by batch: the time for ``count`` + 1 tokens less the time for one, over ``count``.

    On the clock, and as the sum over kernels, in which the host has no part: it differs from process to process.
    """
    clock: dict[str, list[float]] = {}
    kernels: dict[str, Json] = {}
    gc.collect()
    gc.freeze()
    for batch in batches:
        requests, key = batch_of(batch, vocabulary(llm)), str(batch)
        one, many = partial(generate, llm, requests, 1), partial(generate, llm, requests, 1 + count)
        many()
        clock[key] = []
        for _ in range(repeats):
            first, _ = one()
            whole, _ = many()
            clock[key].append(round((whole - first) / count * 1e3, 4))
        kernels[key] = kernels_between(one, many, count)
        shown = " ".join(map(str, clock[key]))
        print(f"batch {batch}: ms a step: {shown}; kernels {kernels[key].get('total')}", flush=True)
    return {"step_ms": clock, "step_gpu_ms": kernels}


def wait() -> None:
    """Until the GPU has done all it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def kernel_ms(call: Callable[[], Any]) -> dict[str, float]:
    """By kernel, copies among them, the milliseconds that the GPU spent while ``call`` ran; empty without a GPU.

    From PyTorch's profiler, whose records of a replayed CUDA graph name every kernel in it.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize()
    return {event.key: event.self_device_time_total / 1e3 for event in profiler.key_averages()}


def kernels_between(one: Callable[[], Any], many: Callable[[], Any], steps: float) -> Json:
    """Milliseconds of kernels in a step: of ``many`` less those of ``one``, over ``steps``.

    ``total`` is of all of them, ``kernels`` names the longest. Empty without a GPU.
    """
    short, long = kernel_ms(one), kernel_ms(many)
    each = {name: (long.get(name, 0.0) - short.get(name, 0.0)) / steps for name in long | short}
    if not each:
        return {}
    longest = sorted(each, key=lambda name: -each[name])[:_NAMED]
    return {
        "total": round(sum(each.values()), 5),
        "kernels": {name: round(each[name], 5) for name in longest},
    }


def step_ms(run: Json, batch: str) -> float | None:
    """Median milliseconds a decode step of a run, on the clock; None where it was not measured."""
    times = run.get("step_ms", {}).get(batch)
    return median(times) if times else None


def step_kernels_ms(run: Json, batch: str) -> float | None:
    """Milliseconds of kernels in a decode step; None where they were not taken."""
    total: float | None = run.get("step_gpu_ms", {}).get(batch, {}).get("total")
    return total
