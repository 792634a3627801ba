"""A 27B without weights: the configuration, and what vLLM's dummy loader is made to put into it.

vLLM's loader leaves integers as they were in memory. Here packed weights become random, from a seed that depends on
the module's name alone, and every ``g_idx`` a random act order: the same in each variant, so that stock act order
and ours compute the same function.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from bench.full_size import TEXT_27B, VISION_27B
from gptq_hybrid.checkpoint import layout_for

# Sizes a CPU gets through, to try the script out; its times say nothing.
_TINY = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "vocab_size": 2048,
}


def config(layers: int, *, desc_act: bool, tiny: bool = False) -> dict[str, Any]:
    """``config.json`` of a GPTQ checkpoint of the 27B with so many layers."""
    text: dict[str, Any] = {**TEXT_27B, **(_TINY if tiny else {}), "num_hidden_layers": layers}
    interval = text["full_attention_interval"]
    text |= {
        "layer_types": [
            "linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers)
        ],
        "attn_output_gate": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 32768,
        "mtp_use_dedicated_embeddings": False,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10_000_000,
            "rope_type": "default",
        },
    }
    vision = {
        **VISION_27B,
        "out_hidden_size": text["hidden_size"],
        "model_type": "qwen3_5",
        "num_heads": 16,
        "in_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "deepstack_visual_indexes": [],
    }
    last = text["vocab_size"] - 1
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
        "image_token_id": last,
        "video_token_id": last - 1,
        "vision_start_token_id": last - 2,
        "vision_end_token_id": last - 3,
        "text_config": text,
        "vision_config": vision,
        "quantization_config": {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 128,
            "sym": True,
            "desc_act": desc_act,
            # There are no tensors to tell it from, and the short names fit those of the MTP head too.
            "modules_in_block_to_quantize": _quantized(text),
            "dynamic": {r"-:^mtp\..*": {}},
        },
    }


def _quantized(text: dict[str, Any]) -> list[str]:
    """The packed linears of a layer of either kind, such as ``mlp.down_proj``."""
    layout = layout_for({"model_type": "qwen3_5", "text_config": text})
    return sorted({".".join(linear.name.split(".")[-2:]) for linear in layout.quantized})


def write_checkpoint(folder: Path, layers: int, *, desc_act: bool, tiny: bool = False) -> Path:
    """A folder with nothing but ``config.json``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config(layers, desc_act=desc_act, tiny=tiny), indent=1)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def random_order(rows: int, group_size: int) -> Any:
    """A random act order, int32 ``[rows]`` on the CPU, always the same one for a number of rows.

    As `vllm_qwen36_plugin.act_order.method.initial_g_idx`, which it replaces: that is asked more than once for a
    layer, and must say the same.
    """
    import torch

    from vllm_qwen36_plugin.act_order.sorting import natural_order

    generator = torch.Generator().manual_seed(rows)
    return natural_order(rows, group_size)[torch.randperm(rows, generator=generator)]


def fill_on_load(variant: str) -> list[Any]:
    """Have the dummy loader fill packed weights and, for ``stock``, ``g_idx``; returns a list that gets the model.

    Raises:
        ImportError, AttributeError: vLLM's dummy loader is not where it was from 0.19 to 0.33.
    """
    import torch
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    original = DummyModelLoader.load_weights
    loaded: list[Any] = []

    def load_weights(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, model, *args, **kwargs)
        filled = 0
        for name, parameter in model.named_parameters():
            kind = name.rpartition(".")[2]
            if kind == "qweight":
                generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
                parameter.data.random_(-(2**31), 2**31, generator=generator)
                filled += 1
            elif kind == "qzeros":
                parameter.data.fill_(0x77777777)
            elif kind == "g_idx" and variant == "stock":
                parameter.data.copy_(random_order(len(parameter), 128))
            elif kind == "g_idx" and variant == "none":
                parameter.data.copy_(torch.arange(len(parameter)) // 128)
        if not filled:
            raise RuntimeError("the dummy model has no packed weights: nothing was built as quantized")
        print(f"{filled} packed weights filled", flush=True)
        loaded.append(model)

    DummyModelLoader.load_weights = load_weights
    return loaded


def act_order_layers(model: Any, variant: str) -> dict[str, int]:
    """How many linears run which kernel, and how many of them permute their input when they run."""
    found = {"linears": 0, "permuting": 0}
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "kernel", None)
        if kernel is None or not hasattr(module, "qweight"):
            continue
        name = f"{type(module.quant_method).__name__}, {type(kernel).__name__}"
        order = getattr(module, "act_order" if variant.startswith("ours") else "g_idx_sort_indices", None)
        found["linears"] += 1
        found["permuting"] += order is not None and order.numel() > 0
        found[name] = found.get(name, 0) + 1
    return found
