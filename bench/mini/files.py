"""The files of the checkpoint: configuration and tokenizer before training, shards, index and vision stub after it.

    python -m bench.mini.files WORK TRAINED bench/mini     # TRAINED: what train.py wrote

Writes `checkpoint/` (BF16; the MTP head in its own indexed `mtp.safetensors`) and `training.json` into the last
folder. Configurations are the demo checkpoint's, with other sizes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptq_hybrid.demo._tokenizer import TokenizerFiles

_SHARD = 14_000_000  # bytes
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


def write_json_files(folder: Path, tokens: TokenizerFiles) -> None:
    """Configuration, generation and processor configuration, tokenizer and chat template into `folder`."""
    from gptq_hybrid.demo import _config

    tokens.write(folder)
    contents = {
        "config.json": model_config(tokens),
        "generation_config.json": _config.generation_config(tokens),
        **_config.processor_configs(),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def weights(trained: Path, config: dict[str, Any], target: Path) -> int:
    """Write shards and index; returns the number of parameters, the vision stub's included."""
    from safetensors.torch import load_file, save_file

    from gptq_hybrid.demo import _weights

    tensors: dict[str, Any] = {}
    for file in sorted(trained.glob("weights-*.safetensors")):
        tensors |= load_file(file)
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("mtp.")}
    tensors |= _weights.vision_tensors(config["vision_config"], seed=0)
    shards: list[dict[str, Any]] = [{}]
    for name, tensor in tensors.items():
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > _SHARD:
            shards.append({})
        shards[-1][name] = tensor.contiguous()
    files = {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}
    files["mtp.safetensors"] = head
    for name, shard in files.items():
        save_file(shard, target / name, metadata={"format": "pt"})
    weight_map = {name: file for file, shard in files.items() for name in shard}
    total = sum(t.nbytes for shard in files.values() for t in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return sum(t.numel() for shard in files.values() for t in shard.values())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("trained", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    checkpoint = args.target / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    shutil.copytree(args.work / "checkpoint", checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    print(f"{weights(args.trained, config, checkpoint) / 1e6:.2f} M parameters")
    shutil.copy(args.trained / "training.json", args.target / "training.json")
    print(f"{sum(f.stat().st_size for f in checkpoint.iterdir()) / 1e6:.1f} MB in {checkpoint}")


if __name__ == "__main__":
    main()
