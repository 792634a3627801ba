"""Short and long contexts of the prompts of a workload, counted by a server's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gptq_hybrid.calibration.prompts import BETWEEN, Prompt, Prompts
from gptq_hybrid.common.errors import HybridError


class Tokens(Protocol):
    """A server's tokenizer."""

    def count(self, prompt: Prompt) -> int:
        """Count the tokens of the prompt as the model gets it, through the chat template if it has messages."""

    def encode(self, text: str) -> list[int]:
        """Tokenize a text, without special tokens around it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids into text."""


def require_bytes(prompts: Prompts, tokens: int) -> None:
    """Refuse a long context that all texts together cannot fill, without asking a tokenizer.

    Raises:
        HybridError: they have fewer bytes than ``tokens``.
    """
    total = sum(len(prompt.content.encode("utf-8", "surrogatepass")) for prompt in prompts.prompts)
    if total < tokens:
        raise too_little_text(prompts.path, f"{total:,} bytes", tokens)


def too_little_text(path: Path, size: str, tokens: int) -> HybridError:
    """Make the error that the long context cannot be filled."""
    return HybridError(
        f"{path} has no prompt long enough, and too little text to fill a long context: all its prompts together "
        f"hold {size}, and the long context is {tokens:,} tokens",
        remedy="Give more prompts, fewer tokens with --long-tokens, or --context short.",
    )


@dataclass
class Contexts:
    """Short and long prompts, counted by a server's tokenizer."""

    prompts: Prompts
    tokens: Tokens
    most: int
    """Most tokens of a prompt: the server's ``max_model_len`` minus those of the answer."""
    left_out: int = field(default=0, init=False)
    """Number of prompts that have more."""
    _usable: list[tuple[Prompt, int]] | None = field(default=None, init=False)
    _texts: dict[int, list[int]] = field(default_factory=dict, init=False)
    _long: dict[tuple[int, int], Prompt] = field(default_factory=dict, init=False)

    def short(self, at: int) -> Prompt:
        """Return prompt ``at`` of those that fit, starting over after the last.

        Raises:
            HybridError: no prompt fits.
        """
        usable = self._fitting()
        return usable[at % len(usable)][0]

    def long(self, at: int, length: int) -> Prompt:
        """Return the same prompt behind other text, about ``length`` tokens in all.

        The text comes from the prompts that follow it, starting over after the last, each once, answers
        included, with a blank line between. Its last tokens are cut off. No two prompts begin alike.

        Raises:
            HybridError: no prompt fits, or all texts together are too short.
        """
        usable = self._fitting()
        at %= len(usable)
        if (at, length) not in self._long:
            prompt, tokens = usable[at]
            self._long[at, length] = prompt.behind(self._filling(at, length - tokens, length))
        return self._long[at, length]

    def _fitting(self) -> list[tuple[Prompt, int]]:
        if self._usable is None:
            counted = [(prompt, self.tokens.count(prompt)) for prompt in self.prompts.prompts]
            self._usable = [(prompt, count) for prompt, count in counted if count <= self.most]
            self.left_out = len(counted) - len(self._usable)
            if not self._usable:
                raise HybridError(
                    f"{self.prompts.path}: every prompt has more than {self.most:,} tokens, which is what "
                    "--max-model-len leaves beside the answer",
                    remedy="Give shorter prompts, a smaller --max-tokens, or --vllm-args '--max-model-len N'.",
                )
        return self._usable

    def _filling(self, at: int, room: int, length: int) -> str:
        if room <= 0:
            return ""
        usable, ids = self._fitting(), list[int]()
        between = self.tokens.encode(BETWEEN)
        for step in range(1, len(usable)):
            ids += self._text((at + step) % len(usable))
            if len(ids) + len(between) >= room:
                # At least one token of other text.
                return self.tokens.decode(ids[: max(room - len(between), 1)])
            ids += between
        raise too_little_text(self.prompts.path, f"{len(ids) + length - room:,} tokens", length)

    def _text(self, at: int) -> list[int]:
        if at not in self._texts:
            self._texts[at] = self.tokens.encode(self._fitting()[at][0].content)
        return self._texts[at]
