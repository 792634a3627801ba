"""Tiny checkpoints with a real MTP head's names and shapes, and configs that look like vLLM's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from gptq_hybrid.checkpoint import layout_for

MTP_FILE, BODY_FILE, INDEX = "mtp.safetensors", "model.safetensors", "model.safetensors.index.json"

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "full_attention_interval": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "vocab_size": 64,
    "mtp_num_hidden_layers": 1,
    "quantization_config": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "desc_act": False,
    },
}

Head = dict[str, torch.Tensor]


def random_head() -> Head:
    """The 15 tensors in BF16."""
    torch.manual_seed(0)
    return {spec.name: torch.randn(spec.shape).bfloat16() for spec in layout_for(CONFIG).mtp}


def write_checkpoint(
    folder: Path, head: Head | None = None, *, indexed: bool = True, config: dict[str, Any] | None = None
) -> Path:
    """A folder with a body shard, the head in a file of its own, and an index that names it or does not."""
    folder.mkdir(parents=True, exist_ok=True)
    head = random_head() if head is None else head
    body = {"model.embed_tokens.weight": torch.zeros(4, 4)}
    save_file(body, folder / BODY_FILE)
    weight_map = dict.fromkeys(body, BODY_FILE)
    if head:
        save_file(head, folder / MTP_FILE)
        weight_map |= dict.fromkeys(head, MTP_FILE) if indexed else {}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    return folder


def vllm_config(
    model: str | Path,
    *,
    method: str | None = "mtp",
    architectures: tuple[str, ...] = ("Qwen3_5MTP",),
    load_format: str = "auto",
    additional: Any = None,
    **draft: Any,
) -> SimpleNamespace:
    """What the hook reads of a ``VllmConfig``; ``method=None`` is a server without speculation."""
    draft_model = SimpleNamespace(
        model=str(model), revision=None, hf_config=SimpleNamespace(architectures=list(architectures)), **draft
    )
    return SimpleNamespace(
        speculative_config=method and SimpleNamespace(method=method, draft_model_config=draft_model),
        load_config=SimpleNamespace(load_format=load_format, download_dir=None),
        additional_config={} if additional is None else additional,
    )
