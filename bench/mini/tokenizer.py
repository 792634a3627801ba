"""Train the byte-level BPE tokenizer on the corpus and encode the corpus with it.

    python -m bench.mini.tokenizer WORK     # after corpus.py; writes WORK/checkpoint and WORK/pack

`WORK/checkpoint` gets every file of the checkpoint but the weights, `WORK/pack` what `train.py` reads: the token
ids (uint16, documents ended by <|endoftext|>) of all domains in one `.xz` file, with `pack.json`.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.mini.files import VOCABULARY, model_config, write_json_files
from bench.mini.sources import DOMAINS
from gptq_hybrid.demo._tokenizer import _KEPT_WHEN_DECODING, _PRETOKENIZE, SPECIAL_TOKENS, TokenizerFiles

_SAMPLE = 2_600_000  # characters a domain that the merges are learned from
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 5, "dict_size": 160 << 20}]


def texts(work: Path, part: str, domain: str) -> Iterator[str]:
    """The documents of one domain."""
    with (work / "corpus" / part / f"{domain}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _sample(work: Path) -> Iterator[str]:
    for domain in DOMAINS:
        left = _SAMPLE
        for text in texts(work, "train", domain):
            for token in SPECIAL_TOKENS:
                text = text.replace(token, "")
            yield text[:20_000]
            left -= min(len(text), 20_000)
            if left < 0:
                break


def train(work: Path) -> tuple[Any, TokenizerFiles]:
    """The tokenizer and its files; the vocabulary has exactly `VOCABULARY` entries."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_PRETOKENIZE), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(work), trainer)
    tokenizer.add_tokens(
        [AddedToken(t, special=t not in _KEPT_WHEN_DECODING, normalized=False) for t in SPECIAL_TOKENS]
    )
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if len(ids) != VOCABULARY:
        raise RuntimeError(f"{len(ids)} tokens, not {VOCABULARY}")
    return tokenizer, TokenizerFiles(tokenizer.to_str(), ids, (), VOCABULARY)


def encode(tokenizer: Any, documents: Iterator[str], end: int) -> tuple[np.ndarray, int]:
    """(token ids of all documents, bytes of their text)."""
    parts, size, batch = [], 0, []

    def flush() -> None:
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            parts.append(np.array([*encoding.ids, end], dtype=np.uint16))
        batch.clear()

    for text in documents:
        size += len(text.encode("utf-8", "replace"))
        batch.append(text)
        if len(batch) == 500:
            flush()
    flush()
    return np.concatenate(parts), size


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder that corpus.py wrote to")
    work: Path = parser.parse_args().work
    tokenizer, files = train(work)
    for folder in ("checkpoint", "pack"):
        (work / folder).mkdir(exist_ok=True)
    write_json_files(work / "checkpoint", files)
    end = files.ids["<|endoftext|>"]
    arrays, table = [], {}
    for part in ("train", "heldout"):
        for domain in DOMAINS:
            tokens, size = encode(tokenizer, texts(work, part, domain), end)
            table.setdefault(domain, {})[part] = {"tokens": len(tokens), "bytes": size}
            arrays.append(tokens)
        print(
            part,
            {d: round(t[part]["bytes"] / t[part]["tokens"], 2) for d, t in table.items()},
            "bytes a token",
        )
    stream = np.concatenate(arrays)
    packed = lzma.compress(stream.tobytes(), filters=_XZ)
    (work / "pack" / "tokens.u16.xz").write_bytes(packed)
    content = {"domains": table, "end": end, "config": model_config(files)["text_config"]}
    (work / "pack" / "pack.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"{len(stream) / 1e6:.1f} M tokens in {len(packed) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
