"""What the user asked for, and what `auto` makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.options import PluginOptions

Form = Literal["bf16", "fp8", "w4", "w8"]
# Tokens that may be drafted where there is a list and nothing was said. Of held-out text the list that ships for
# Qwen3.5 and 3.6 holds 94.5 % in its first 32,768 and 98.3 % in these (bench/draft_vocab); their rows of the output
# head take 173 MB in W4, of 2.5 GB.
USUAL_VOCABULARY = 65536


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """``form`` of the weights; ``vocabulary``: how many tokens may be drafted, 0 for all, None for the usual number
    if there is a list; ``path`` of a list other than the checkpoint's."""

    form: Form
    vocabulary: int | None
    path: str | None

    @property
    def stock(self) -> bool:
        """Whether drafts are left as vLLM makes them."""
        return self.form == "bf16" and self.vocabulary == 0


def settings_for(options: PluginOptions, device: str, capability: tuple[int, int] | None) -> DraftSettings:
    """What to do on a ``device`` (``"cuda"``, ``"cpu"``), for which ``capability`` is its (major, minor).

    `auto` leaves the weights as they are: what fewer bits bring was measured on no GPU yet. The vocabulary is cut
    where that is asked for, or other weights are.

    Raises:
        OptionsError: FP8 where vLLM has no GEMM for it.
    """
    if options.draft == "fp8" and (device != "cuda" or capability is None or capability < (8, 9)):
        raise OptionsError(
            '"qwen36.draft" in --additional-config is "fp8", which needs an Ada GPU or a later one; use "w8"'
        )
    if options.draft != "auto":
        return DraftSettings(options.draft, options.draft_vocab, options.draft_vocab_file)
    asked = options.draft_vocab if options.draft_vocab is not None or options.draft_vocab_file else 0
    return DraftSettings("bf16", asked, options.draft_vocab_file)


def device_here() -> tuple[str, tuple[int, int] | None]:
    """vLLM's platform: its name, and the capability of a CUDA device."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return str(current_platform.device_type), None
    found: Any = current_platform.get_device_capability()
    return "cuda", None if found is None else (int(found[0]), int(found[1]))
