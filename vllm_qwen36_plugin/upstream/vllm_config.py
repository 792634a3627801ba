"""What a ``VllmConfig`` says of its draft model and of the checkpoint's quantization.

Changes: nothing.
Why: the checks before start and in the worker go by it. By then every alias of MTP has become the method ``mtp``.
Versions: 0.19.1 to 0.33.0; a load config of the draft's own came in 0.2x.
Checks: a missing attribute of the draft is a ``CompatError``; a missing ``quantization_config`` is none.
May go: with the checks that read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_qwen36_plugin.architectures import MTP_DRAFT
from vllm_qwen36_plugin.errors import CompatError


@dataclass(frozen=True, slots=True)
class MtpDraft:
    """The draft model that vLLM is about to load: a folder or hub id, and how it will be read."""

    model: str
    revision: str | None
    load_format: str
    download_dir: str | None


def mtp_draft(vllm_config: Any) -> MtpDraft | None:
    """Return the draft if it is an MTP head of a dense hybrid; None if speculation is off or of another kind.

    Raises:
        CompatError: an attribute is not where it was in any version read.
    """
    try:
        speculative = vllm_config.speculative_config
        if speculative is None:
            return None
        model = speculative.draft_model_config
        if speculative.method != "mtp" or model is None:
            return None
        if MTP_DRAFT not in (model.hf_config.architectures or ()):
            return None
        load_config = draft_load_config(vllm_config)
        return MtpDraft(str(model.model), model.revision, load_format(load_config), load_config.download_dir)
    except AttributeError as error:
        raise CompatError(f"vLLM's config has changed: {error}") from error


def draft_lengths(vllm_config: Any) -> str:
    """How many tokens are drafted a step, and by batch size where that is set (vLLM 0.33); to be compared."""
    speculative = vllm_config.speculative_config
    lengths = (
        getattr(speculative, name, None)
        for name in ("num_speculative_tokens", "num_speculative_tokens_per_batch_size")
    )
    return ", ".join(str(length) for length in lengths if length is not None)


def draft_load_config(vllm_config: Any) -> Any:
    """Return the ``LoadConfig`` of the draft: its own if it has one (vLLM 0.2x and later), else the target's."""
    own = getattr(vllm_config.speculative_config, "draft_load_config", None)
    return vllm_config.load_config if own is None else own


def load_format(load_config: Any) -> str:
    """Return ``load_format`` as a lower-case string; it has been an enum."""
    value = load_config.load_format
    return str(getattr(value, "value", value)).lower()


def quantization_config(model_config: Any) -> Mapping[str, Any] | None:
    """Return the ``quantization_config`` of the checkpoint's own config; None if it is not quantized."""
    for name in ("hf_config", "hf_text_config"):
        config = getattr(getattr(model_config, name, None), "quantization_config", None)
        if isinstance(config, Mapping):
            return config
    return None
