"""What the user asked for, and what `auto` makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.options import PluginOptions

Precision = Literal["bf16", "fp8", "w4", "w8"]
# Tokens that may be drafted if there is a list and the user gave no number. Of held-out text the list that ships
# for Qwen3.5 and 3.6 holds 94.5 % in its first 32,768 and 98.3 % in these (bench/draft_vocab). Their channels of
# the output head take 189 MB in W4, of 2.5 GB.
USUAL_VOCABULARY = 65536
# Linears of the MTP layer that W4 keeps in W8. What a draft knows of the model's hidden state goes through `fc`,
# and the layer only adds to it. In 4 bits it loses the small model's drafts 0.5 % of their tokens a step, more than
# any other weight (bench/drafts/README.md). In 8 a draft of the 27B over 65,536 tokens reads 451 MB, not 428.
_W8_IN_W4 = ("fc",)
# Ampere: the oldest with BF16, and with every kernel of vLLM's for 8 bits.
_LEAST_FOR_AUTO = (8, 0)
# `auto` copies the whole output head in W4 where the copy, less what W8 frees in the MTP layer, takes no more than
# this share of the KV cache. Of a 27B it is 0.3 GiB net: 1 % on 48 GB, and too much where 24 GB leave 4 GiB.
_MOST_OF_CACHE = 1 / 16


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """What drafts are made from.

    Attributes:
        precision: of the weights.
        vocabulary: how many tokens may be drafted: 0 for all, None for the usual number if there is a list.
        list_file: a list of tokens other than the checkpoint's.
        whole_head: precision of a copy of the whole output head, where no list narrows it; None: ``precision``.
        most_of_cache: the largest share of the KV cache that such a copy may take; None: it is made in any case.
    """

    precision: Precision
    vocabulary: int | None
    list_file: str | None
    whole_head: Precision | None = None
    most_of_cache: float | None = None

    @property
    def stock(self) -> bool:
        """Whether drafts are left as vLLM makes them."""
        return self.precision == "bf16" and self.vocabulary == 0

    @property
    def precision_of_whole_head(self) -> Precision:
        """Precision of a copy of the whole output head; ``"bf16"`` for none."""
        return self.precision if self.whole_head is None else self.whole_head

    def precision_for(self, linear: str) -> Precision:
        """Return the precision of a linear of the MTP layer, by its name in vLLM's draft model."""
        return "w8" if self.precision == "w4" and linear in _W8_IN_W4 else self.precision


def draft_settings(options: PluginOptions, device: str, capability: tuple[int, int] | None) -> DraftSettings:
    """Decide what drafts are made from on a ``device`` (``"cuda"``, ``"cpu"``) of this (major, minor) capability.

    `auto` is W8 on NVIDIA GPUs: drafts like those of the BF16 weights (with the trained small model all of them
    are accepted, bench/drafts) from half of the linears' bytes. It copies the output head in W4 where the card has
    room for that. It does not cut the vocabulary unasked: in a language that the list was not counted from, hardly
    any draft would be accepted. On a CPU, where W8 saves nothing, drafts stay vLLM's.

    Raises:
        OptionsError: FP8 where vLLM has no GEMM for it.
    """
    if options.draft == "fp8" and (device != "cuda" or capability is None or capability < (8, 9)):
        raise OptionsError(
            '"qwen36.draft" in --additional-config is "fp8", which needs an Ada GPU or a later one; use "w8"'
        )
    if options.draft != "auto":
        return DraftSettings(options.draft, options.draft_vocab, options.draft_vocab_file)
    vocabulary = options.draft_vocab if options.draft_vocab is not None or options.draft_vocab_file else 0
    if device == "cuda" and capability is not None and capability >= _LEAST_FOR_AUTO:
        return DraftSettings("w8", vocabulary, options.draft_vocab_file, "w4", _MOST_OF_CACHE)
    return DraftSettings("bf16", vocabulary, options.draft_vocab_file)


def current_device() -> tuple[str, tuple[int, int] | None]:
    """Return the name of vLLM's platform, and the capability of a CUDA device."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return str(current_platform.device_type), None
    capability: Any = current_platform.get_device_capability()
    return "cuda", None if capability is None else (int(capability[0]), int(capability[1]))
