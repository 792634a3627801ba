"""What an evaluation is given, checked before anything long starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gptq_hybrid.calibration import EncodedDocument, encode_documents, load_documents
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.streaming import CheckpointWeights

REFERENCE = "reference"
# Documents on which tokenizers are compared, spread over all of them.
_COMPARED = 200
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")


def device_of(name: str | None) -> torch.device:
    """The device asked for; by default the first GPU, or the CPU.

    Raises:
        HybridError: torch does not know it, or has none here.
    """
    remedy = "One of: cpu, cuda, cuda:1 (the second GPU)."
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise HybridError(f"device {name!r} is not known", remedy=remedy) from error
    if device.type not in ("cpu", "cuda"):
        raise HybridError(f"device {name!r} cannot be computed on", remedy=remedy)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HybridError(f"device {name!r}: torch finds {torch.cuda.device_count()} GPUs", remedy=remedy)
    return device


def labels_of(paths: Sequence[Path]) -> dict[str, Path]:
    """A short name for each checkpoint: its hub id, or its folder with as many parents as tell them apart.

    Raises:
        HybridError: none is given, or one twice.
    """
    if not paths:
        raise HybridError("no quantized checkpoint to evaluate", remedy="qwen36 eval REF QUANT [QUANT …]")
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise HybridError("a quantized checkpoint is given twice", remedy="Give each once.")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = [name_of(path, depth) for path in resolved]
        # Fingerprints of all, the reference's among them, are kept by name.
        if len({*names, REFERENCE}) == len(names) + 1:
            return dict(zip(names, paths, strict=True))
    raise AssertionError("different paths differ in a part")


def name_of(path: Path, depth: int = 1) -> str:
    """``OWNER/NAME`` of a folder in the hub's cache (with the commit from depth 2 on), else its last parts."""
    path = path.resolve()
    found = re.fullmatch(r"models--(.+?)--(.+)", path.parent.parent.name)
    if found and path.parent.name == "snapshots":
        name = "/".join(found.groups())
        return name if depth == 1 else f"{name}@{path.name}"
    return "/".join(path.parts[-depth:])


def refuse_other_model(reference: CheckpointWeights, weights: CheckpointWeights, label: str) -> None:
    """Make sure that both are of one architecture and size.

    Raises:
        HybridError: layers or vocabulary differ in shape.
    """
    mine = {linear.name: linear for linear in reference.layout.quantized}
    theirs = {linear.name: linear for linear in weights.layout.quantized}
    # A text-only checkpoint has the same layers under another prefix.
    prefixes = (reference.layout.layers_prefix, weights.layout.layers_prefix)
    shapes = [
        {(name.removeprefix(prefix), q.out_features, q.in_features) for name, q in found.items()}
        for found, prefix in zip((mine, theirs), prefixes, strict=True)
    ]
    if shapes[0] != shapes[1] or _vocabulary(reference) != _vocabulary(weights):
        raise HybridError(
            f"{label} is not a checkpoint of the reference's model: layers or vocabulary differ in shape",
            remedy="Give the original it was quantized from as REF.",
        )


def refuse_quantized_reference(reference: CheckpointWeights) -> None:
    """Everything is held against the original; a swapped pair would come out as a fair result.

    Raises:
        HybridError: it is quantized.
    """
    if reference.checkpoint.quantization_config is not None:
        raise HybridError(
            f"{reference.checkpoint.location} is quantized: nothing can be held against it",
            remedy="Give the BF16 original first: qwen36 eval REF QUANT [QUANT …]",
        )


def documents_of(
    data: Sequence[str],
    reference: CheckpointWeights,
    others: Sequence[CheckpointWeights],
    *,
    limit: int | None,
    max_length: int,
    seed: int,
) -> list[EncodedDocument]:
    """Documents as the reference's tokenizer cuts them.

    Raises:
        HybridError: documents that cannot be read, or a tokenizer that cuts them otherwise.
    """
    found = load_documents(data, limit=limit, seed=seed)
    tokenizer = _tokenizer(reference.checkpoint.path)
    encoded = encode_documents(found, tokenizer, max_length)
    if not encoded:
        raise HybridError("no document has 10 tokens or more", remedy="Give longer texts with --data.")
    vocabulary = _vocabulary(reference)
    if (largest := max(max(document.input_ids) for document in encoded)) >= vocabulary:
        raise HybridError(
            f"the tokenizer of {reference.checkpoint.location} gives token {largest}; "
            f"the model has {vocabulary}",
            remedy="The tokenizer files are another model's: copy the original's into the folder.",
        )
    # As text, special tokens of the chat template included.
    texts = [tokenizer.decode(document.input_ids) for document in encoded[:: -(-len(encoded) // _COMPARED)]]
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for weights in others:
        own = _tokenizer(weights.checkpoint.path)
        for text, ids in zip(texts, wanted, strict=True):
            if own(text, add_special_tokens=False)["input_ids"] != ids:
                raise HybridError(
                    f"{weights.checkpoint.location} has another tokenizer than "
                    f"{reference.checkpoint.location}: other tokens for {text[:40]!r}",
                    remedy="Copy the original's tokenizer files into the checkpoint, or give its own original.",
                )
    return encoded


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """float32 products on a GPU in float32: TF32 rounds what goes in to ten bits, a thousand times as coarse."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.init()
    owners = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [owner.allow_tf32 for owner in owners]
    for owner in owners:
        owner.allow_tf32 = False
    try:
        yield
    finally:
        for owner, allowed in zip(owners, before, strict=True):
            owner.allow_tf32 = allowed


def _vocabulary(weights: CheckpointWeights) -> int:
    return int(weights.checkpoint.text_config["vocab_size"])


def _tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    remedy = "Copy tokenizer.json and tokenizer_config.json of the original into the folder."
    # Without any, transformers 5 makes up an empty tokenizer for the model's type.
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise HybridError(f"{path} has no tokenizer", remedy=remedy)
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise HybridError(f"{path} has no tokenizer that can be read: {error}", remedy=remedy) from error
