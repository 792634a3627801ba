"""64 mixed requests in this process on a GPU: which rows went through 8-bit activations.

    python -m tests.serving.mixed_requests OUT.json

The 27B's shapes with few layers and made-up weights, ``"prefill": "a8"``, two drafts, prefix caching, prompts of 40
to 6,000 tokens that come while others decode; every fourth goes on where the one before it ended. What each step
decodes is counted from the scheduler's side, so not by what the plugin goes by.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.dummy import fill_on_load, write_checkpoint
from bench.engine import set_up

REQUESTS, LAYERS, NEW, EVERY, START = 64, 4, 48, 3, 256


def lengths() -> list[int]:
    """As many prompts as `REQUESTS`, short ones and long."""
    generator = torch.Generator().manual_seed(4)
    spread = torch.rand(REQUESTS, generator=generator)
    return [int(40 * 150**share) for share in spread.tolist()]


def prompts(vocabulary: int) -> list[list[int]]:
    generator, made = torch.Generator().manual_seed(5), list[list[int]]()
    for number, length in enumerate(lengths()):
        ids = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        made.append([*made[-1], *ids[:200]] if number % 4 == 3 else ids)
    return made


def start(folder: Path) -> Any:
    from vllm import LLM

    import vllm_qwen36_plugin

    vllm_qwen36_plugin.register()
    fill_on_load(scaled=True)
    return LLM(
        str(write_checkpoint(folder / "checkpoint", LAYERS)),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=8192,
        max_num_seqs=32,
        max_num_batched_tokens=2048,
        enable_prefix_caching=True,
        async_scheduling=False,
        disable_log_stats=False,
        limit_mm_per_prompt={"image": 0, "video": 0},
        gpu_memory_utilization=0.1,
        kv_cache_memory_bytes=3 << 30,
        gdn_prefill_backend="triton",
        attention_backend="FLASH_ATTN",
        compilation_config={"cudagraph_capture_sizes": [3, 6, 12, 24, 48, 96]},
        speculative_config={"method": "mtp", "num_speculative_tokens": 2},
        additional_config={"qwen36": {"prefill": "a8"}, "mixed_requests": True},
    )


def decoded(scheduler: Any) -> dict[str, Any]:
    """Requests of the next step whose prompt is done: those decode in it, or verify drafts."""
    return {
        request.request_id: request
        for request in scheduler.running
        if request.num_computed_tokens >= request.num_prompt_tokens
    }


def run(llm: Any) -> dict[str, Any]:
    """Serve all; by step the tokens that decode, those of prompts, and the rows in 8 bits of each call."""
    from vllm import SamplingParams

    from vllm_qwen36_plugin.prefill import dispatch
    from vllm_qwen36_plugin.prefill.profile import Starts

    for linear in dispatch.linears():
        # Wherever it may be taken, whether it is the fastest on this card or not.
        linear.starts, linear.times = Starts(a8=START), {}
    scheduler, found = llm.llm_engine.engine_core.engine_core.scheduler, list[dict[str, Any]]()
    schedule = scheduler.schedule

    def counted(*args: Any, **kwargs: Any) -> Any:
        decoding = decoded(scheduler)
        output = schedule(*args, **kwargs)
        by_request = output.num_scheduled_tokens
        decodes = sum(count for name, count in by_request.items() if name in decoding)
        found.append({"decoded": decodes, "prompts": sum(by_request.values()) - decodes, "a8": []})
        return output

    scheduler.schedule = counted
    plain = dispatch.Linear.run

    def watched(self: Any, way: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if way == "a8":
            found[-1]["a8"].append(x.shape[0])
        return plain(self, way, x, *args, **kwargs)

    dispatch.Linear.run = watched  # type: ignore[method-assign]
    sampling = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    waiting, replies = prompts(2048), dict[str, int]()
    for number in range(10_000):
        if number % EVERY == 0 and waiting:
            llm.llm_engine.add_request(
                str(REQUESTS - len(waiting)), {"prompt_token_ids": waiting.pop(0)}, sampling
            )
        for output in llm.llm_engine.step():
            replies[output.request_id] = len(output.outputs[0].token_ids)
        if not waiting and not llm.llm_engine.has_unfinished_requests():
            break
    counted_tokens = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return {
        "replies": sorted(replies.values()),
        "steps": found,
        "hits": counted_tokens.get("vllm:prefix_cache_hits", 0),
        "errors": dispatch.guard().errors(),
        "rows": {linear.shape.key: dict(linear.rows) for linear in dispatch.linears()},
    }


def main(out: Path) -> None:
    set_up("any")
    with tempfile.TemporaryDirectory() as folder:
        out.write_text(json.dumps(run(start(Path(folder)))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
