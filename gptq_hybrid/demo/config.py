"""The JSON files of a demo checkpoint: model, generation and processor configuration."""

from __future__ import annotations

from typing import Any

from .spec import FULL_ATTENTION_INTERVAL, DemoSpec
from .tokenizer import TokenizerFiles

Json = dict[str, Any]


def text_config(spec: DemoSpec, tokens: TokenizerFiles) -> Json:
    """Return the ``qwen3_5_text`` configuration; head sizes, rotary share and conv width are the 27B's."""
    layer_types = [
        "linear_attention" if (i + 1) % FULL_ATTENTION_INTERVAL else "full_attention"
        for i in range(spec.num_hidden_layers)
    ]
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "bos_token_id": tokens.ids["<|endoftext|>"],
        "dtype": "bfloat16",
        "eos_token_id": tokens.ids["<|endoftext|>"],
        "full_attention_interval": FULL_ATTENTION_INTERVAL,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": spec.intermediate_size,
        "layer_types": layer_types,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 32768,
        "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 4,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10_000_000,
            "rope_type": "default",
        },
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": tokens.padded_size,
    }


def vision_config(spec: DemoSpec) -> Json:
    """Return the configuration of a vision tower of two blocks; it patches and merges as the 27B's does."""
    return {
        "deepstack_visual_indexes": [],
        "depth": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 128,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "model_type": "qwen3_5",
        "num_heads": 2,
        "num_position_embeddings": 256,
        "out_hidden_size": spec.hidden_size,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def model_config(spec: DemoSpec, tokens: TokenizerFiles) -> Json:
    """Return ``config.json``: nested for the multimodal class, flat for the text-only class."""
    text = text_config(spec, tokens)
    if spec.text_only:
        # vLLM 0.32 strips these two from the target's configuration but not from the MTP drafter's, which then
        # overruns its one-dimensional positions. Text positions are the same in all three sections anyway.
        del text["rope_parameters"]["mrope_section"], text["rope_parameters"]["mrope_interleaved"]
        return {"architectures": ["Qwen3_5ForCausalLM"], **text, "pad_token_id": None}
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": tokens.ids["<|image_pad|>"],
        "language_model_only": False,
        "model_type": "qwen3_5",
        "text_config": text,
        "tie_word_embeddings": False,
        "video_token_id": tokens.ids["<|video_pad|>"],
        "vision_config": vision_config(spec),
        "vision_end_token_id": tokens.ids["<|vision_end|>"],
        "vision_start_token_id": tokens.ids["<|vision_start|>"],
    }


def generation_config(tokens: TokenizerFiles) -> Json:
    """Return ``generation_config.json``: greedy, with the two end tokens of the real model."""
    end_of_text = tokens.ids["<|endoftext|>"]
    return {
        "bos_token_id": end_of_text,
        "do_sample": False,
        "eos_token_id": [tokens.ids["<|im_end|>"], end_of_text],
        "pad_token_id": end_of_text,
    }


def processor_configs() -> dict[str, Json]:
    """Return the two processor files of the real model, by file name."""
    shared: Json = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    return {
        "preprocessor_config.json": {
            "size": {"longest_edge": 16777216, "shortest_edge": 65536},
            **shared,
            "image_processor_type": "Qwen2VLImageProcessor",
        },
        "video_preprocessor_config.json": {
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            **shared,
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
    }
