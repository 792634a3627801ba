"""Make the checkpoint folder from trained weights: shards, index, vision stub.

    python -m bench.mini.assemble WORK TRAINED bench/mini     # TRAINED: what train.py wrote

Writes `checkpoint/` (BF16; the MTP head in its own indexed `mtp.safetensors`) and `training.json` into the last
folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

_SHARD = 14_000_000  # bytes


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
