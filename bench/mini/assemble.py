"""Make the checkpoint folder from trained weights: shards, index, vision stub, held-out sample.

    python -m bench.mini.assemble WORK TRAINED bench/mini     # TRAINED: what train.py wrote

Writes `checkpoint/` (BF16; the MTP head in its own indexed `mtp.safetensors`), `heldout/DOMAIN.jsonl`,
`training.json` and `corpus.json` into the last folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from bench.mini.sources import DOMAINS

_SHARD = 14_000_000  # bytes
_SAMPLE = 24_000  # bytes of held-out text a domain
_DOCUMENT = 3_000  # characters of a document at most


def weights(trained: Path, config: dict, target: Path) -> int:
    """Write shards and index; returns the number of parameters, the vision stub's included."""
    from safetensors.torch import load_file, save_file

    from gptq_hybrid.demo import _weights

    tensors = {}
    for file in sorted(trained.glob("weights-*.safetensors")):
        tensors |= load_file(file)
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("mtp.")}
    tensors |= _weights.vision_tensors(config["vision_config"], seed=0)
    shards = [{}]
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


def sample(work: Path, target: Path) -> None:
    """A few held-out documents a domain, with source and licence; long ones are cut."""
    manifest = json.loads((work / "corpus" / "manifest.json").read_text(encoding="utf-8"))
    licences = {entry["package"]: entry["licence"] for entry in manifest["packages"]}
    target.mkdir(exist_ok=True)
    for domain in DOMAINS:
        lines, size = [], 0
        # Short documents are at most half of the sample.
        for line in (work / "corpus" / "heldout" / f"{domain}.jsonl").open(encoding="utf-8"):
            document = json.loads(line)
            text = document["text"][:_DOCUMENT]
            if len(text) < 400 and sum(len(x) < 700 for x in lines) > 8:
                continue
            entry = {"text": text, "source": document["source"], "licence": licences[document["source"]]}
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
            size += len(text.encode())
            if size >= _SAMPLE:
                break
        (target / f"{domain}.jsonl").write_text("".join(lines), encoding="utf-8")


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
    sample(args.work, args.target / "heldout")
    shutil.copy(args.work / "corpus" / "manifest.json", args.target / "corpus.json")
    shutil.copy(args.trained / "training.json", args.target / "training.json")
    print(f"{sum(f.stat().st_size for f in checkpoint.iterdir()) / 1e6:.1f} MB in {checkpoint}")


if __name__ == "__main__":
    main()
