"""A slice of the 27B to quantize: so many of its layers at full size, random weights, a vocabulary of 1,024 or so.

Weights, tokenizer and processor files are those of the demo checkpoint (``gptq_hybrid.demo``): matrices of ordinary
size, norms with outlier channels, no MTP head, a vision tower of two small blocks. What a quantizer takes time and
memory for is the 27B's.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.dummy import TINY
from bench.full_size import TEXT_27B
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.demo import DemoSpec
from gptq_hybrid.demo.builder import map_tokens, split_shards, write_weights
from gptq_hybrid.demo.config import generation_config, model_config, processor_configs
from gptq_hybrid.demo.tokenizer import build_tokenizer
from gptq_hybrid.demo.weights import language_tensors, layer_tensors, vision_tensors

# The demo's configuration has the rest, and a vocabulary of its own.
_OWN = ("vocab_size", "num_hidden_layers", "mtp_num_hidden_layers")


def slice_config(layers: int, vocabulary: Any, *, tiny: bool = False) -> dict[str, Any]:
    """``config.json`` of the slice; ``vocabulary`` is what ``build_tokenizer`` makes."""
    sizes = {**TEXT_27B, **(TINY if tiny else {})}
    spec = DemoSpec(hidden_size=sizes["hidden_size"], num_hidden_layers=max(layers, 4))
    config = model_config(spec, vocabulary)
    text = config["text_config"]
    text.update({name: value for name, value in sizes.items() if name in text and name not in _OWN})
    text.update(num_hidden_layers=layers, layer_types=text["layer_types"][:layers], mtp_num_hidden_layers=0)
    return config


def write_slice(folder: Path, layers: int, *, tiny: bool = False, seed: int = 0) -> Path:
    """Write the slice into ``folder``, one shard a layer; returns it.

    Weights depend on ``seed`` alone. At full size a layer takes 0.75 GB of disk, and up to three times that of main
    memory while it is made, as many layers at a time as there are cores.

    Raises:
        FileExistsError: the folder holds something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    tokens = build_tokenizer()
    config = slice_config(layers, tokens, tiny=tiny)
    text = config["text_config"]
    following = map_tokens(tokens.padded_size, tokens.loop)
    prefix = "model.language_model."
    tensors = language_tensors({**text, "layer_types": []}, following, tokens.loop, seed, prefix)
    # A tensor is drawn by one thread: 18 s a layer of the 27B on an EPYC core.
    with ThreadPoolExecutor() as pool:
        for layer in pool.map(lambda i: layer_tensors(text, i, seed, prefix), range(layers)):
            tensors |= layer
    tensors |= vision_tensors(config["vision_config"], seed)
    files = split_shards(tensors, min(layers, 16))
    write_weights(folder, files, set(files))
    tokens.write(folder)
    write_json_atomic(folder / "config.json", config)
    write_json_atomic(folder / "generation_config.json", generation_config(tokens))
    for name, content in processor_configs().items():
        write_json_atomic(folder / name, content)
    return folder
