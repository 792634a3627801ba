"""What a ``VllmConfig`` says of its draft model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_qwen36_plugin.architectures import MTP_DRAFT
from vllm_qwen36_plugin.errors import CompatError


@dataclass(frozen=True, slots=True)
class MtpDraft:
    """The draft model vLLM is about to load: a folder or hub id, and how it will be read."""

    model: str
    revision: str | None
    load_format: str
    download_dir: str | None


def mtp_draft(vllm_config: Any) -> MtpDraft | None:
    """The draft, if it is an MTP head of a dense hybrid; None if speculation is off or another kind.

    Every alias (``qwen3_next_mtp``, ``qwen3_5_mtp``) has become method ``mtp`` by the time this is asked, and
    the architecture that of the draft class.

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
        load = draft_load_config(vllm_config)
        return MtpDraft(str(model.model), model.revision, format_name(load), load.download_dir)
    except AttributeError as error:
        raise CompatError(f"vLLM's config has changed: {error}") from error


def draft_load_config(vllm_config: Any) -> Any:
    """The ``LoadConfig`` of the draft: its own where it has one (vLLM 0.2x and later), else the target's."""
    own = getattr(vllm_config.speculative_config, "draft_load_config", None)
    return vllm_config.load_config if own is None else own


def format_name(load_config: Any) -> str:
    """``load_format`` as a lower-case string; it has been an enum."""
    found = load_config.load_format
    return str(getattr(found, "value", found)).lower()
