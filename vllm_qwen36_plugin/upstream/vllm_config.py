"""What a ``VllmConfig`` says of its draft model and of the checkpoint's quantization.

Changes: the draft's load config gets ``enable_weights_track``, where vLLM has that for quantized models. With sleep
    mode ``sleep_preserve_parameter_names`` gets the draft's parameters.
Why: the checks before start and in the worker go by it. By then every alias of MTP has become ``mtp``.
Versions: 0.19.1 to 0.33.0; a load config of the draft's own came in 0.2x.
Checks: a missing attribute of the draft is a ``CompatError``; a missing ``quantization_config`` is none.
    Tracking is left alone where the user set it, and with a loader that takes no such key.
May go: with the checks that read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_qwen36_plugin.architectures import MTP_DRAFT
from vllm_qwen36_plugin.errors import CompatError

_TRACK = "enable_weights_track"
# Those that vLLM's default loader reads; others refuse a key that they do not know.
_TRACKING_FORMATS = frozenset({"auto", "hf", "safetensors"})


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


def stages_that_cannot_draft(vllm_config: Any) -> int:
    """Return the stages of pipeline parallelism if vLLM dies with MTP on them; 0 if it does not, or with one.

    The V1 model runner makes a drafter on the last stage and asks the others for theirs, once all weights are
    loaded (read in 0.19.1 to 0.33.0, run on 0.32.0). V2 does not; it is the default on CUDA from 0.29 on.
    """
    stages = int(getattr(getattr(vllm_config, "parallel_config", None), "pipeline_parallel_size", 1))
    return 0 if stages == 1 or getattr(vllm_config, "use_v2_model_runner", False) else stages


def draft_load_config(vllm_config: Any) -> Any:
    """Return the ``LoadConfig`` of the draft: its own if it has one (vLLM 0.2x and later), else the target's."""
    own = getattr(vllm_config.speculative_config, "draft_load_config", None)
    return vllm_config.load_config if own is None else own


def track_draft_weights(vllm_config: Any) -> bool:
    """Have vLLM's own loader refuse a draft with parameters that nothing was loaded into, from 0.32 on.

    By default it does so for unquantized models alone. Before 0.32 it exempts every quantized layer. The target's
    load config stays as it is. Returns whether weights are tracked.
    """
    from gptq_hybrid.doctor import installed_vllm

    load_config = draft_load_config(vllm_config)
    extra = getattr(load_config, "model_loader_extra_config", None)
    if not isinstance(extra, dict) or load_format(load_config) not in _TRACKING_FORMATS:
        return False
    installed = installed_vllm()
    if installed is None or not installed.at_least("0.32"):
        return False
    if _TRACK not in extra:
        own = replace(load_config, model_loader_extra_config={**extra, _TRACK: True})
        vllm_config.speculative_config.draft_load_config = own
    return draft_weights_are_tracked(vllm_config)


def draft_weights_are_tracked(vllm_config: Any) -> bool:
    """Whether vLLM's loader looks for parameters of the draft that nothing was loaded into."""
    extra = getattr(draft_load_config(vllm_config), "model_loader_extra_config", None)
    return isinstance(extra, dict) and bool(extra.get(_TRACK))


def keep_drafts_in_sleep(vllm_config: Any) -> bool:
    """Have vLLM keep the draft's parameters through sleep level 2; False if it sleeps and this vLLM cannot.

    What is quantized after loading is in no checkpoint, so no reload brings it back. vLLM 0.31 and later keep
    parameters by name; earlier ones wake up with whatever is in that memory.
    """
    model_config = vllm_config.model_config
    if not getattr(model_config, "enable_sleep_mode", False):
        return True
    kept = getattr(model_config, "sleep_preserve_parameter_names", None)
    if not isinstance(kept, list):
        return False
    if not any(name.startswith("draft.") for name in kept):
        kept.append("draft.*")
    return True


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
