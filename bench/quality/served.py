"""Checkpoints in a stock vLLM, plugin off: do they load, which kernels do they take, how many drafts are accepted?

    python -m bench.quality.served OUT.json CHECKPOINT [--disable MacheteLinearKernel]     # once a checkpoint

Greedy, two drafts, prompts from the mini model's held-out text. `--disable` keeps vLLM from a kernel: without
Machete a Hopper card takes Marlin, as an Ada card does. Needs a GPU.
"""

from __future__ import annotations

import os
from typing import Any

from bench.arguments import command_line
from bench.engine import MINI, mini_prompts, place
from bench.mini.engine import serve, start, summary, together
from bench.results import Json, load, save

_NEW, _A_DOMAIN = 96, 2
# A module of each kind; in_proj_qkvz stands for the MLP too.
_MODULES = ("layers.0.linear_attn.in_proj_qkvz", "layers.0.linear_attn.out_proj", "layers.3.self_attn.qkv_proj",
            "lm_head")  # fmt: skip


def kernels(model: Any) -> dict[str, str]:
    """Kernel and bits of a module of each kind."""
    by_module = {}
    for name, module in model.named_modules():
        if name.endswith(_MODULES) and (method := getattr(module, "quant_method", None)) is not None:
            kernel, config = getattr(method, "kernel", None), getattr(method, "quant_config", None)
            by_module[name.rsplit(".", 1)[-1]] = (
                f"{type(kernel).__name__.removesuffix('LinearKernel')}, {config.weight_bits} bit"
                if kernel and config
                else "not quantized"
            )
    return by_module


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "out", "checkpoint")
    parser.add_argument("--disable", default="")
    args = parser.parse_args()
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if args.disable:
        os.environ["VLLM_DISABLED_KERNELS"] = args.disable

    prompts = mini_prompts(MINI / "checkpoint", _A_DOMAIN)
    llm = start(
        args.checkpoint,
        attention_backend="TRITON_ATTN", gdn_prefill_backend="triton", gpu_memory_utilization=0.2,
    )  # fmt: skip
    taken = llm.apply_model(kernels)[0]
    served = serve(llm, prompts, _NEW)
    result: Json = load(args.out) or {
        "environment": place(),
        "disabled_kernels": args.disable,
        "prompts": sum(map(len, prompts.values())),
        "served": [],
    }
    figures = summary(together(list(served.values())))
    result["served"].append({"checkpoint": f"`{args.checkpoint.name}`", **figures, "kernels": taken})
    save(args.out, result)


if __name__ == "__main__":
    main()
