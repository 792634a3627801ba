"""Build a small checkpoint of the true architecture that behaves as a fixed map from each token to the next.

Whatever the prompt, the greedy continuation is the demo sentence, over and over. An intact MTP head has every
draft accepted; a head that was lost, zeroed or overwritten has none accepted. :mod:`.weights` says how that is
done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, read_json_object
from gptq_hybrid.common.atomic import write_json_atomic

from .config import generation_config, model_config, processor_configs
from .spec import DemoSpec
from .tokenizer import LOOP_PIECES, build_tokenizer, loop_ids
from .weights import Tensors, language_tensors, mtp_tensors, vision_tensors


@dataclass(frozen=True)
class DemoCheckpoint:
    """A checkpoint folder and the map it was built from.

    Attributes:
        path: the folder.
        next_token: the token that follows each token.
        loop: the token ids of the demo sentence.
        spec: what was built; None if the folder was opened.
    """

    path: Path
    next_token: tuple[int, ...] = field(repr=False)
    loop: tuple[int, ...] = field(repr=False)
    spec: DemoSpec | None = None

    @classmethod
    def open(cls, path: str | Path) -> DemoCheckpoint:
        """Read the map back from the folder of a demo checkpoint, or of a quantized copy of one."""
        path = Path(path)
        config = read_json_object(path / "config.json")
        tokenizer = read_json_object(path / "tokenizer.json")
        loop = loop_ids(tokenizer["model"]["vocab"])
        vocab_size: int = config.get("text_config", config)["vocab_size"]
        return cls(path, map_tokens(vocab_size, loop), loop)

    def expected_ids(self, prompt_ids: Sequence[int], n: int) -> list[int]:
        """Return the ``n`` token ids that follow ``prompt_ids`` under greedy decoding."""
        token, ids = prompt_ids[-1], []
        for _ in range(n):
            token = self.next_token[token]
            ids.append(token)
        return ids

    def expected_text(self, prompt_ids: Sequence[int], n: int) -> str:
        """Return the decoded form of :meth:`expected_ids`."""
        pieces = dict(zip(self.loop, LOOP_PIECES, strict=True))
        return "".join(pieces[token] for token in self.expected_ids(prompt_ids, n))


def build_demo_checkpoint(path: str | Path, spec: DemoSpec | None = None) -> DemoCheckpoint:
    """Write the checkpoint into ``path``, which is created if need be.

    The files are those of the real model: BF16 shards with an index, tokenizer, chat template, generation and
    processor configuration. They are the same to the byte for the same spec, the same torch and the same CPython,
    whose documentation trains the tokenizer.

    Raises:
        FileExistsError: ``path`` is not empty.
    """
    path = Path(path)
    spec = spec or DemoSpec()
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty")
    tokens = build_tokenizer()
    config = model_config(spec, tokens)
    text = config if spec.text_only else config["text_config"]
    next_token = map_tokens(tokens.padded_size, tokens.loop)

    prefix = "model." if spec.text_only else "model.language_model."
    tensors = language_tensors(text, next_token, tokens.loop, spec.seed, prefix)
    if not spec.text_only:
        tensors |= vision_tensors(config["vision_config"], spec.seed)
    files: dict[str, Tensors] = {}
    head = {} if spec.mtp == "none" else mtp_tensors(text, spec.seed)
    if spec.mtp == "inline":
        tensors |= head
    elif head:
        files[MTP_FILE] = head
    files |= split_shards(tensors, spec.shards)
    indexed = {name for name in files if name != MTP_FILE or spec.mtp == "separate"}
    write_weights(path, files, indexed)

    tokens.write(path)
    write_json_atomic(path / "config.json", config)
    write_json_atomic(path / "generation_config.json", generation_config(tokens))
    if not spec.text_only:
        for name, content in processor_configs().items():
            write_json_atomic(path / name, content)
    return DemoCheckpoint(path, next_token, tokens.loop, spec)


def map_tokens(vocab_size: int, loop: tuple[int, ...]) -> tuple[int, ...]:
    """Return the token that follows each token: the next one of ``loop``, or its first after any other token."""
    next_token = [loop[0]] * vocab_size
    for token, successor in zip(loop, loop[1:] + loop[:1], strict=True):
        next_token[token] = successor
    return tuple(next_token)


def split_shards(tensors: Tensors, count: int) -> dict[str, Tensors]:
    """Split ``tensors``, in order, into ``count`` files of about equal size, none of them empty."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[Tensors] = [{}]
    written, left = 0, len(tensors)
    for name, tensor in tensors.items():
        missing = count - len(shards)
        if missing and shards[-1] and (written * count >= total * len(shards) or left <= missing):
            shards.append({})
        shards[-1][name] = tensor
        written += tensor.nbytes
        left -= 1
    return {f"model-{i + 1:05}-of-{count:05}.safetensors": shard for i, shard in enumerate(shards)}


def write_weights(path: Path, files: dict[str, Tensors], indexed: set[str]) -> None:
    """Write safetensors files into ``path``, and an index of those named in ``indexed``."""
    from safetensors.torch import save_file

    for file, tensors in files.items():
        save_file(tensors, path / file, metadata={"format": "pt"})
    weight_map = {name: file for file in sorted(indexed) for name in files[file]}
    total = sum(tensor.nbytes for file in indexed for tensor in files[file].values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json_atomic(path / INDEX_NAME, index)
