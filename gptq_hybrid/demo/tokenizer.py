"""A byte-level BPE tokenizer in which every word of the demo sentence is one token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptq_hybrid.common.atomic import write_json_atomic

from .text import corpus

# It starts with a space, so that the loop decodes to running text. No word occurs twice.
SENTENCE = (
    " Every token of this tiny hybrid model has exactly one successor,"
    " so its drafts are always right and any lost head shows at once."
)
LOOP_PIECES = tuple(SENTENCE.replace(",", "\n,").replace(".", "\n.").replace(" ", "\n ").split("\n")[1:])

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
)
# As in the real tokenizer, these two are added tokens that decoding keeps.
KEPT_WHEN_DECODING = frozenset({"<think>", "</think>"})

_LEARNED_SIZE = 1000
_ROW_MULTIPLE = 64
_SENTENCE_WEIGHT = 20_000
PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' or 'video' in part %}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part %}
{{- part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}
"""


@dataclass(frozen=True)
class TokenizerFiles:
    """A built tokenizer.

    Attributes:
        tokenizer_json: the text of ``tokenizer.json``.
        ids: all token ids by token.
        loop: the ids of the demo sentence.
        padded_size: the size of the vocabulary, rounded up for the kernels.
    """

    tokenizer_json: str = field(repr=False)
    ids: dict[str, int] = field(repr=False)
    loop: tuple[int, ...]
    padded_size: int

    def write(self, path: Path) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja`` into ``path``."""
        path.joinpath("tokenizer.json").write_text(self.tokenizer_json, encoding="utf-8")
        path.joinpath("chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        write_json_atomic(path / "tokenizer_config.json", self._config())

    def _config(self) -> dict[str, Any]:
        added = {
            str(self.ids[token]): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token not in KEPT_WHEN_DECODING,
            }
            for token in SPECIAL_TOKENS
        }
        return {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": [t for t in SPECIAL_TOKENS if t not in KEPT_WHEN_DECODING],
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }


def build_tokenizer() -> TokenizerFiles:
    """Train the tokenizer on CPython's own documentation and, with most weight, the demo sentence."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_LEARNED_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    tokenizer.add_tokens(
        [AddedToken(t, special=t not in KEPT_WHEN_DECODING, normalized=False) for t in SPECIAL_TOKENS]
    )
    ids = tokenizer.get_vocab(with_added_tokens=True)
    loop = loop_ids(ids)
    if tuple(tokenizer.encode(SENTENCE * 2).ids) != loop * 2:
        raise RuntimeError("the tokenizer splits a word of the demo sentence")
    padded = -(-len(ids) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    return TokenizerFiles(tokenizer.to_str(pretty=True), ids, loop, padded)


def loop_ids(ids: dict[str, int]) -> tuple[int, ...]:
    """Look up the ids of the demo sentence, in order, in a vocabulary of byte-level tokens."""
    return tuple(ids[piece.replace(" ", "\u0120")] for piece in LOOP_PIECES)


def _training_text() -> Iterator[str]:
    # Every pair inside the sentence outweighs every other pair, so its words are merged first, and whole.
    yield SENTENCE * _SENTENCE_WEIGHT
    yield from corpus().values()
