"""Checkpoints in a stock vLLM, plugin off: do they load, which kernels do they take, how many drafts are accepted?

    python -m bench.quality.served OUT.json CHECKPOINT... [--disable MacheteLinearKernel]

Greedy, two drafts, prompts from the mini model's held-out text. `--disable` keeps vLLM from a kernel: without
Machete a Hopper card takes Marlin, as an Ada card does. Needs a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from pathlib import Path
from typing import Any

from bench.mini.engine import _counters
from bench.results import Json, save

_MINI = Path(__file__).parents[1] / "mini"
_PROMPT, _NEW, _A_DOMAIN = 64, 96, 2
# One module of each kind: in_proj_qkvz stands for the MLP too.
_MODULES = ("layers.0.linear_attn.in_proj_qkvz", "layers.0.linear_attn.out_proj", "layers.3.self_attn.qkv_proj",
            "lm_head")  # fmt: skip


def prompts(tokenizer: Any) -> list[list[int]]:
    """The first tokens of two held-out documents of each domain."""
    found = []
    for file in sorted((_MINI / "heldout").glob("*.jsonl")):
        ids = [tokenizer(json.loads(line)["text"])["input_ids"] for line in file.open(encoding="utf-8")]
        found += [x[:_PROMPT] for x in ids if len(x) > _PROMPT][:_A_DOMAIN]
    return found


def kernels(model: Any) -> dict[str, str]:
    """Kernel and bits of a module of each kind."""
    found = {}
    for name, module in model.named_modules():
        if name.endswith(_MODULES) and (method := getattr(module, "quant_method", None)) is not None:
            kernel, config = getattr(method, "kernel", None), getattr(method, "quant_config", None)
            found[name.rsplit(".", 1)[-1]] = (
                f"{type(kernel).__name__.removesuffix('LinearKernel')}, {config.weight_bits} bit"
                if kernel and config
                else "not quantized"
            )
    return found


def serve(checkpoint: Path, given: list[list[int]], memory: float) -> Json:
    """Start an engine in this process, generate, count."""
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(checkpoint),
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=32,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=False,
        limit_mm_per_prompt={"image": 0, "video": 0},
        speculative_config={"method": "mtp", "num_speculative_tokens": 2},
        gpu_memory_utilization=memory,
        attention_backend="TRITON_ATTN",
        gdn_prefill_backend="triton",
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=_NEW, ignore_eos=True)
    llm.generate([{"prompt_token_ids": ids} for ids in given], sampling, use_tqdm=False)
    steps, *accepted = _counters(llm)
    found = {
        "checkpoint": f"`{checkpoint.name}`",
        "steps": steps,
        "accepted_per_position": [round(count / steps, 4) for count in accepted],
        "acceptance_length": round(1 + sum(accepted) / steps, 4),
        "kernels": llm.apply_model(kernels)[0],
    }
    del llm
    gc.collect()
    torch.cuda.empty_cache()
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--disable", default="")
    parser.add_argument("--memory", type=float, default=0.2)
    args = parser.parse_args()
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if args.disable:
        os.environ["VLLM_DISABLED_KERNELS"] = args.disable
    from transformers import AutoTokenizer

    from gptq_hybrid.evaluate._environment import environment

    given = prompts(AutoTokenizer.from_pretrained(_MINI / "checkpoint"))
    result: Json = {
        "environment": environment("cuda:0"),
        "disabled_kernels": args.disable,
        "prompts": len(given),
        "served": [],
    }
    for checkpoint in args.checkpoints:
        result["served"].append(serve(checkpoint, given, args.memory))
        save(args.out, result)
        print(result["served"][-1], flush=True)


if __name__ == "__main__":
    main()
