"""The mini model's `config.json` and the other JSON files: the demo checkpoint's, with other sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptq_hybrid.demo._tokenizer import TokenizerFiles

VOCABULARY = 8192  # a multiple of 128
LAYERS = 8
HIDDEN = 256
INTERMEDIATE = 640


def model_config(tokens: TokenizerFiles) -> dict[str, Any]:
    """13.6 M parameters: 8 layers (6 linear, 2 full), 4.2 M of them embeddings and `lm_head`, a vision stub."""
    from gptq_hybrid.demo import _config
    from gptq_hybrid.demo.builder import DemoSpec

    spec = DemoSpec(hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=LAYERS)
    config = _config.model_config(spec, tokens)
    config["text_config"] |= {
        "head_dim": 128,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "max_position_embeddings": 8192,
        "vocab_size": VOCABULARY,
    }
    # Half of the rotary dimensions (a quarter of the head's), in three sections as at 27B.
    config["text_config"]["rope_parameters"]["mrope_section"] = [6, 5, 5]
    config["vision_config"] |= {"depth": 1, "hidden_size": 64, "intermediate_size": 128, "num_heads": 1}
    return config


def write_json_files(folder: Any, tokens: TokenizerFiles) -> None:
    """Configuration, generation and processor configuration, tokenizer and chat template into `folder`."""
    import json

    from gptq_hybrid.demo import _config

    tokens.write(folder)
    contents = {
        "config.json": model_config(tokens),
        "generation_config.json": _config.generation_config(tokens),
        **_config.processor_configs(),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
