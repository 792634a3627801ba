"""A 27B without weights: its ``config.json``, and what vLLM's dummy loader is made to put into it.

vLLM's loader leaves integers as they were in memory. Here packed weights become random, from a seed that depends on
the module's name alone, and every ``g_idx`` a random act order: the same in each variant, so that stock act order
and ours compute the same function.

The loader's scales are of either sign around zero, and the norm of a Gated-DeltaNet layer is 1e-3. Where FP8 is
used or tokens are compared, `set_scales` gives weights the spread of real ones: a layer then changes what comes
after it, and nothing overflows.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from bench.full_size import TEXT_27B, VISION_27B
from gptq_hybrid.checkpoint import layout_for

_GROUP = 128
# Root mean square of a 4-bit value less 8, all 16 alike.
_VALUE = 4.637
# Sizes a CPU gets through, to try the script out; its times say nothing.
TINY = {
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
    text: dict[str, Any] = {**TEXT_27B, **(TINY if tiny else {}), "num_hidden_layers": layers}
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


def write_checkpoint(
    folder: Path, layers: int, *, desc_act: bool = False, quantized: bool = True, tiny: bool = False
) -> Path:
    """Write a folder with nothing but ``config.json``, of a GPTQ checkpoint or of the BF16 original; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = config(layers, desc_act=desc_act, tiny=tiny)
    if not quantized:
        del content["quantization_config"]
    (folder / "config.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder


def random_order(rows: int, group_size: int) -> Any:
    """A random act order, int32 ``[rows]`` on the CPU, always the same one for a number of rows.

    As `vllm_qwen36_plugin.act_order.method.initial_g_idx`, which it replaces: that is asked more than once for a
    layer, and must say the same.
    """
    import torch

    from gptq_hybrid.packing import natural_g_idx

    generator = torch.Generator().manual_seed(rows)
    return natural_g_idx(rows, group_size)[torch.randperm(rows, generator=generator)]


def fill_on_load(g_idx: str = "none", *, scaled: bool = False) -> list[Any]:
    """Have the dummy loader fill packed weights; return a list that gets the model.

    ``g_idx``: "stock" has it random, "none" natural, anything else as the loader left it. ``scaled``: with
    `set_scales`; a draft model, which is loaded after the target, is then left alone.

    Raises:
        ImportError, AttributeError: vLLM's dummy loader is not where it was from 0.19 to 0.33.
    """
    import torch
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    original = DummyModelLoader.load_weights
    loaded: list[Any] = []

    def load_weights(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, model, *args, **kwargs)
        if scaled and loaded:
            return
        filled = 0
        for name, parameter in model.named_parameters():
            kind = name.rpartition(".")[2]
            if kind == "qweight":
                generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
                parameter.data.random_(-(2**31), 2**31, generator=generator)
                filled += 1
            elif kind == "qzeros":
                parameter.data.fill_(0x77777777)
            elif kind == "g_idx" and g_idx == "stock":
                parameter.data.copy_(random_order(len(parameter), 128))
            elif kind == "g_idx" and g_idx == "none":
                parameter.data.copy_(torch.arange(len(parameter)) // 128)
        if not filled:
            raise RuntimeError("the dummy model has no packed weights: nothing was built as quantized")
        if scaled:
            set_scales(model)
        print(f"{filled} packed weights filled", flush=True)
        loaded.append(model)

    DummyModelLoader.load_weights = load_weights
    return loaded


def set_scales(model: Any) -> int:
    """Set scales for which a dense weight has a mean square of 1 / k, and norms of 1; return how many scales.

    Scales are positive, each from half to one and a half times the mean, from a seed that depends on the name
    alone. Expects ``[groups, n]``, groups of 128.

    Raises:
        RuntimeError: the model has none: it was not built as quantized.
    """
    import torch

    count = 0
    for name, parameter in model.named_parameters():
        if name.endswith(".scales"):
            k = parameter.shape[0] * _GROUP
            generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
            parameter.data.uniform_(0.5, 1.5, generator=generator).mul_(1 / (_VALUE * k**0.5))
            count += 1
        elif name.endswith("linear_attn.norm.weight"):
            parameter.data.fill_(1.0)
    if not count:
        raise RuntimeError("the dummy model has no scales: nothing was built as quantized")
    return count
