"""Checkpoints in a stock vLLM, plugin off: do they load, what do they say, how many drafts are accepted?

    python -m bench.quality.served OUT.json CHECKPOINT... [--disable MacheteLinearKernel]

Greedy, two drafts, prompts from the mini model's held-out text. `--disable` keeps vLLM from a kernel: without
Machete a Hopper card takes Marlin, as an Ada card does.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from pathlib import Path
from typing import Any

_MINI = Path(__file__).parents[1] / "mini"
_PROMPT, _NEW, _A_DOMAIN = 64, 96, 2


def prompts(tokenizer: Any) -> list[list[int]]:
    """The first tokens of two held-out documents of each domain."""
    found = []
    for file in sorted((_MINI / "heldout").glob("*.jsonl")):
        rows = [json.loads(line) for line in file.open(encoding="utf-8")]
        ids = [tokenizer(row["text"])["input_ids"] for row in rows if "text" in row]
        found += [x[:_PROMPT] for x in ids if len(x) > _PROMPT][:_A_DOMAIN]
    return found


def serve(checkpoint: Path, given: list[list[int]], memory: float) -> dict[str, Any]:
    """Start an engine in this process, generate, count."""
    import torch
    from vllm import LLM, SamplingParams

    started = time.perf_counter()
    cuda = torch.cuda.is_available()
    extra: dict[str, Any] = {}
    if cuda:
        extra = {
            "gpu_memory_utilization": memory,
            "attention_backend": "TRITON_ATTN",
            "gdn_prefill_backend": "triton",
        }
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
        **extra,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=_NEW, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in given], sampling, use_tqdm=False)
    values = {m.name: m for m in llm.get_metrics() if m.name.startswith("vllm:spec_decode")}
    steps = values["vllm:spec_decode_num_drafts"].value
    per_position = list(values["vllm:spec_decode_num_accepted_tokens_per_pos"].values)
    config = llm.llm_engine.model_config.hf_config
    found = {
        "checkpoint": checkpoint.name,
        "architecture": config.architectures[0],
        "steps": steps,
        "accepted_per_position": [round(count / steps, 4) for count in per_position],
        "acceptance_length": round(1 + sum(per_position) / steps, 4),
        "kernels": _kernels(llm),
        "sample": outputs[2].outputs[0].text[:120],
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "seconds": round(time.perf_counter() - started, 1),
    }
    del llm
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return found


def _kernels(llm: Any) -> dict[str, str]:
    """Linear method and kernel of a few modules, where the engine runs in this process."""

    def look(model: Any) -> dict[str, str]:
        found = {}
        for name, module in model.named_modules():
            method = getattr(module, "quant_method", None)
            if method is None or not name.endswith(
                ("layers.0.linear_attn.in_proj_qkvz", "layers.0.linear_attn.out_proj", "layers.0.mlp.down_proj",
                 "layers.3.self_attn.qkv_proj", "lm_head")
            ):  # fmt: skip
                continue
            kernel = getattr(method, "kernel", None)
            bits = getattr(getattr(method, "quant_config", None), "weight_bits", "")
            found[name] = f"{type(method).__name__} {type(kernel).__name__ if kernel else ''} {bits}".strip()
        return found

    try:
        return llm.apply_model(look)[0]
    except Exception as error:  # noqa: BLE001 — the counts matter more than this note
        return {"unknown": str(error)}


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
    os.environ["VLLM_PLUGINS"] = ""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if args.disable:
        os.environ["VLLM_DISABLED_KERNELS"] = args.disable
    from importlib.metadata import version

    from transformers import AutoTokenizer

    from gptq_hybrid.evaluate._environment import environment

    given = prompts(AutoTokenizer.from_pretrained(_MINI / "checkpoint"))
    result: dict[str, Any] = {
        "environment": {**environment("cuda:0"), "vllm": version("vllm")},
        "disabled_kernels": args.disable,
        "plugin": "off",
        "prompts": len(given),
        "served": [],
    }
    for checkpoint in args.checkpoints:
        result["served"].append(serve(checkpoint, given, args.memory))
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({k: v for k, v in result["served"][-1].items() if k != "tokens"}), flush=True)


if __name__ == "__main__":
    main()
