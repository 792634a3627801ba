"""The inputs of an evaluation, checked before anything long starts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptq_hybrid.calibration import EncodedDocument, LeftOut, encode_documents, load_documents
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.streaming import Batch, CheckpointWeights, make_batches

REFERENCE = "reference"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Tokens that run through a layer at once. At the 27B's sizes the Gated-DeltaNet layer holds about 0.4 MB per token
# in float32 while it runs.
_BATCH_TOKENS = {"cuda": 8192, "cpu": 4096}
# Documents on which tokenizers are compared, spread over all of them.
_COMPARED = 200
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How documents are read and run, for ``qwen36 eval`` and ``qwen36 sensitivity`` alike.

    Attributes:
        limit: most documents of each domain.
        max_length: tokens kept of a document.
        drafts: MTP drafts to look at; 0 for none.
        seed: for the choice of documents and for the intervals.
        device: torch's name of a device; None for the first GPU, or the CPU.
        dtype: arithmetic: ``float32``, which adds no rounding noise, or ``bfloat16``.
        batch_tokens: tokens that run through a layer at once; None for 8,192 on a GPU and 4,096 on a CPU.
    """

    limit: int | None = None
    max_length: int = 2048
    drafts: int = 2
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    batch_tokens: int | None = None


class ReadDocuments(list[EncodedDocument]):
    """Documents that were read; ``left_out`` counts the rows that could not be used, by reason."""

    def __init__(self, documents: Sequence[EncodedDocument], left_out: Counter[str]) -> None:
        super().__init__(documents)
        self.left_out = left_out


def parse_dtype(name: str) -> torch.dtype:
    """Return the dtype that ``--dtype`` names.

    Raises:
        HybridError: it is neither ``float32`` nor ``bfloat16``.
    """
    if name not in _DTYPES:
        raise HybridError(f"dtype {name!r} is not known", remedy=f"One of: {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def choose_device(name: str | None) -> torch.device:
    """Return the device called ``name``; by default the first GPU, or the CPU.

    Raises:
        HybridError: torch does not know it, or there is no such device here.
    """
    remedy = "One of: cpu, cuda, cuda:1 (the second GPU)."
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise HybridError(f"device {name!r} is not known", remedy=remedy) from error
    if device.type not in ("cpu", "cuda"):
        raise HybridError(f"device {name!r} is neither a CPU nor a CUDA GPU", remedy=remedy)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HybridError(f"device {name!r}: torch finds {torch.cuda.device_count()} GPUs", remedy=remedy)
    return device


def label_checkpoints(paths: Sequence[Path]) -> dict[str, Path]:
    """Give each checkpoint a short name: its hub id, or its folder with as many parents as tell them apart.

    Raises:
        HybridError: there is none, or one occurs twice.
    """
    if not paths:
        raise HybridError("no quantized checkpoint to evaluate", remedy="qwen36 eval REF QUANT [QUANT …]")
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise HybridError("a quantized checkpoint is given twice", remedy="Give each once.")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = [checkpoint_name(path, depth) for path in resolved]
        # Fingerprints are stored by name, the reference's among them.
        if len({*names, REFERENCE}) == len(names) + 1:
            return dict(zip(names, paths, strict=True))
    raise AssertionError("different paths differ in a part")


def checkpoint_name(path: str | Path, depth: int = 1) -> str:
    """Return ``OWNER/NAME`` for a folder in the hub's cache, otherwise the last ``depth`` parts of the path.

    From depth 2 on, a hub id also has its commit.
    """
    path = Path(path)
    path = path.resolve()
    match = re.fullmatch(r"models--(.+?)--(.+)", path.parent.parent.name)
    if match and path.parent.name == "snapshots":
        name = "/".join(match.groups())
        return name if depth == 1 else f"{name}@{path.name}"
    return "/".join(path.parts[-depth:])


def refuse_other_model(reference: CheckpointWeights, weights: CheckpointWeights, label: str) -> None:
    """Make sure that both checkpoints have the same architecture and size.

    Raises:
        HybridError: layers or vocabulary differ in shape.
    """
    # A text-only checkpoint has the same layers under another prefix.
    shapes = [
        {
            (linear.name.removeprefix(side.layout.layers_prefix), linear.out_features, linear.in_features)
            for linear in side.layout.quantized
        }
        for side in (reference, weights)
    ]
    if shapes[0] != shapes[1] or _vocabulary(reference) != _vocabulary(weights):
        raise HybridError(
            f"{label} is not a checkpoint of the reference's model: layers or vocabulary differ in shape",
            remedy="Give the original it was quantized from as REF.",
        )


def refuse_quantized_reference(reference: CheckpointWeights) -> None:
    """Make sure that the reference is an original: figures of a swapped pair would look plausible.

    Raises:
        HybridError: it is quantized.
    """
    if reference.checkpoint.quantization_config is not None:
        raise HybridError(
            f"{reference.checkpoint.location} is quantized, so it cannot be the reference",
            remedy="Give the BF16 original first: qwen36 eval REF QUANT [QUANT …]",
        )


def read_documents(
    data: Sequence[str],
    reference: CheckpointWeights,
    others: Sequence[CheckpointWeights],
    options: RunOptions,
) -> ReadDocuments:
    """Read documents and encode them with the reference's tokenizer.

    Raises:
        HybridError: documents cannot be read, or another checkpoint's tokenizer gives other tokens.
    """
    left_out: Counter[str] = Counter()

    def leave_out(row: LeftOut) -> None:
        left_out[row.reason] += 1

    documents = load_documents(data, limit=options.limit, seed=options.seed, on_left_out=leave_out)
    tokenizer = _load_tokenizer(reference.checkpoint.path)
    encoded = encode_documents(documents, tokenizer, options.max_length)
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
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for weights in others:
        own = _load_tokenizer(weights.checkpoint.path)
        for text, ids in zip(texts, expected, strict=True):
            if own(text, add_special_tokens=False)["input_ids"] != ids:
                raise HybridError(
                    f"{weights.checkpoint.location} has another tokenizer than "
                    f"{reference.checkpoint.location}: other tokens for {text[:40]!r}",
                    remedy="Copy the original's tokenizer files into the checkpoint, or give its own original.",
                )
    return ReadDocuments(encoded, left_out)


def batch_documents(
    documents: Sequence[EncodedDocument], options: RunOptions, device: torch.device
) -> list[Batch]:
    """Put documents into batches of the size that ``options`` ask for, or that suits the device."""
    batch_tokens = options.batch_tokens or _BATCH_TOKENS[device.type]
    return make_batches([document.input_ids for document in documents], batch_tokens)


def describe_run(
    data: Sequence[str], documents: Sequence[EncodedDocument], options: RunOptions, device: torch.device
) -> dict[str, Any]:
    """Describe what was run, as a JSON object for the result."""
    left_out = documents.left_out if isinstance(documents, ReadDocuments) else None
    return {
        # Of a path only the last name: the rest is this machine's.
        "data": [Path(spec).name if Path(spec).exists() else spec for spec in data],
        "documents": len(documents),
        "tokens": sum(len(document.input_ids) for document in documents),
        **({"left_out": dict(sorted(left_out.items()))} if left_out else {}),
        "limit": options.limit,
        "max_length": options.max_length,
        "drafts": options.drafts,
        "seed": options.seed,
        "dtype": options.dtype,
        "device": device.type,
    }


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Keep float32 products on a GPU exact: TF32 rounds their inputs to ten bits, a thousand times coarser."""
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


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    remedy = "Copy tokenizer.json and tokenizer_config.json of the original into the folder."
    # Without any of these files, transformers 5 makes an empty tokenizer for the model's type.
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise HybridError(f"{path} has no tokenizer", remedy=remedy)
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise HybridError(f"{path} has no tokenizer that can be read: {error}", remedy=remedy) from error
