"""Build a small checkpoint of the true architecture that behaves as a fixed next-token map.

Whatever the prompt, the greedy continuation is the demo sentence, over and over, and an intact MTP head has
every draft accepted; a head that was lost, zeroed or overwritten has none accepted. See `_weights` for how.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from gptq_hybrid.demo import config as _config
from gptq_hybrid.demo.tokenizer import LOOP_PIECES, build_tokenizer, loop_ids

if TYPE_CHECKING:
    from gptq_hybrid.demo.weights import Tensors

MtpLayout = Literal["inline", "separate", "unindexed", "none"]
MTP_FILE = "mtp.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class DemoSpec:
    """What to build. Sizes are multiples of 128, the group size and the kernels' granularity.

    mtp: where the head's 15 tensors lie: among the ordinary shards ("inline"), in `mtp.safetensors` named in
    the index ("separate") or not named there ("unindexed"), or nowhere ("none"). The config promises a head
    each time.
    """

    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    seed: int = 0
    text_only: bool = False
    mtp: MtpLayout = "inline"
    shards: int = 2

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) < 128 or getattr(self, name) % 128:
                raise ValueError(f"{name} must be a multiple of 128, not {getattr(self, name)}")
        if self.num_hidden_layers < _config.FULL_ATTENTION_INTERVAL:
            raise ValueError(f"num_hidden_layers must be at least {_config.FULL_ATTENTION_INTERVAL}")
        if self.mtp not in get_args(MtpLayout):
            raise ValueError(f"mtp must be one of {get_args(MtpLayout)}, not {self.mtp!r}")
        if not 1 <= self.shards <= 16:
            raise ValueError("shards must be between 1 and 16")
        if self.seed < 0 or self.seed >= 1 << 31:
            raise ValueError("seed must be between 0 and 2**31 - 1")


@dataclass(frozen=True)
class DemoCheckpoint:
    """A checkpoint folder and its map: `next_token[t]` follows `t`; `loop` is the sentence's ids."""

    path: Path
    next_token: tuple[int, ...] = field(repr=False)
    loop: tuple[int, ...] = field(repr=False)
    spec: DemoSpec | None = None

    @classmethod
    def open(cls, path: Path) -> DemoCheckpoint:
        """Read the map back from the folder of a demo checkpoint or a quantized copy of one (`spec` None)."""
        config = json.loads(path.joinpath("config.json").read_text(encoding="utf-8"))
        tokenizer = json.loads(path.joinpath("tokenizer.json").read_text(encoding="utf-8"))
        loop = loop_ids(tokenizer["model"]["vocab"])
        vocab_size: int = config.get("text_config", config)["vocab_size"]
        return cls(path, _next_token(vocab_size, loop), loop)

    def expected_ids(self, prompt_ids: Sequence[int], n: int) -> list[int]:
        """The `n` token ids that follow `prompt_ids` under greedy decoding."""
        token, ids = prompt_ids[-1], []
        for _ in range(n):
            token = self.next_token[token]
            ids.append(token)
        return ids

    def expected_text(self, prompt_ids: Sequence[int], n: int) -> str:
        """The decoded form of `expected_ids`."""
        pieces = dict(zip(self.loop, LOOP_PIECES, strict=True))
        return "".join(pieces[token] for token in self.expected_ids(prompt_ids, n))


def build_demo_checkpoint(path: Path, spec: DemoSpec | None = None) -> DemoCheckpoint:
    """Write the checkpoint into `path` (created; must be empty).

    Same spec, same CPython (whose documentation trains the tokenizer) and same torch: same bytes. The
    layout is the real model's: BF16 shards with an index, tokenizer, chat template, generation and processor
    configuration.
    """
    from gptq_hybrid.demo import weights as _weights

    spec = spec or DemoSpec()
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty")
    tokens = build_tokenizer()
    config = _config.model_config(spec, tokens)
    text = config if spec.text_only else config["text_config"]
    next_token = _next_token(tokens.padded_size, tokens.loop)

    prefix = "model." if spec.text_only else "model.language_model."
    tensors = _weights.language_tensors(text, next_token, tokens.loop, spec.seed, prefix)
    if not spec.text_only:
        tensors |= _weights.vision_tensors(config["vision_config"], spec.seed)
    files: dict[str, Tensors] = {}
    head = {} if spec.mtp == "none" else _weights.mtp_tensors(text, spec.seed)
    if spec.mtp == "inline":
        tensors |= head
    elif head:
        files[MTP_FILE] = head
    files |= _shard(tensors, spec.shards)
    indexed = {name for name in files if name != MTP_FILE or spec.mtp == "separate"}
    _write_weights(path, files, indexed)

    tokens.write(path)
    _write_json(path / "config.json", config)
    _write_json(path / "generation_config.json", _config.generation_config(tokens))
    if not spec.text_only:
        for name, content in _config.processor_configs().items():
            _write_json(path / name, content)
    return DemoCheckpoint(path, next_token, tokens.loop, spec)


def _next_token(vocab_size: int, loop: tuple[int, ...]) -> tuple[int, ...]:
    following = [loop[0]] * vocab_size
    for token, successor in zip(loop, loop[1:] + loop[:1], strict=True):
        following[token] = successor
    return tuple(following)


def _shard(tensors: Tensors, count: int) -> dict[str, Tensors]:
    """Cut `tensors`, in order, into `count` files of about equal size, none of them empty."""
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


def _write_weights(path: Path, files: dict[str, Tensors], indexed: set[str]) -> None:
    from safetensors.torch import save_file

    for file, tensors in files.items():
        save_file(tensors, path / file, metadata={"format": "pt"})
    weight_map = {name: file for file in sorted(indexed) for name in files[file]}
    total = sum(tensor.nbytes for file in indexed for tensor in files[file].values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(path / _INDEX_FILE, index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
