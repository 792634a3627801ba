"""vLLM in this process, one engine after another: what it gives each token of each reply.

    python -m tests.serving.decode_steps PLAN.json OUT.json

PLAN has ``prompts`` (token ids), ``new`` (tokens of a reply) and ``ways``; a way has ``checkpoint``, ``options`` of
the plugin and ``engine``, arguments of vLLM. OUT has for each way the replies with the log-probabilities of the
likeliest tokens of each step, how many drafts were proposed and accepted, and the dtype of states.

On a CPU, ``auto`` makes what it would on an Ampere card that has room.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

LIKELIEST = 8


def run(way: dict[str, Any], prompts: list[list[int]], new: int) -> dict[str, Any]:
    """Start an engine, decode greedily, end it."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    engine: dict[str, Any] = {}
    if torch.cuda.is_available():
        engine = {"gdn_prefill_backend": "triton", "attention_backend": "TRITON_ATTN"}
        engine |= {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 1 << 30}
    llm = LLM(
        model=way["checkpoint"],
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=8,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=False,
        limit_mm_per_prompt={"image": 0, "video": 0},
        additional_config={"qwen36": way["options"]},
        **engine,
        **way["engine"],
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, logprobs=LIKELIEST)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    metrics = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    replies = [
        {
            "ids": list(output.outputs[0].token_ids),
            "steps": [
                {str(token): found.logprob for token, found in step.items()}
                for step in output.outputs[0].logprobs
            ],
        }
        for output in outputs
    ]
    states = llm.collective_rpc(state_dtypes)[0]
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    name = "vllm:spec_decode_num_"
    return {
        "replies": replies,
        "proposed": metrics.get(f"{name}draft_tokens", 0),
        "accepted": metrics.get(f"{name}accepted_tokens", 0),
        "states": states,
    }


def state_dtypes(worker: Any) -> list[str]:
    """Names of the dtypes of recurrent states, as vLLM laid them out."""
    layers = worker.get_model().named_modules()
    return sorted({str(module.kv_cache[1].dtype) for _, module in layers if hasattr(module, "A_log")})


def main(plan: Path, out: Path) -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import torch

    if not torch.cuda.is_available():
        from vllm_qwen36_plugin.draft_head import model

        mock.patch.object(model, "current_device", return_value=("cuda", (8, 0))).start()
        mock.patch.object(model, "share_of_cache", return_value=0.0).start()
    asked = json.loads(plan.read_text())
    found = {name: run(way, asked["prompts"], asked["new"]) for name, way in asked["ways"].items()}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
