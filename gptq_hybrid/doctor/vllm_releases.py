"""What changed in which vLLM release, as far as it matters for serving this family.

Each number was read in the source of that release or seen in a run of it. What holds for the releases in between
follows from the two sides of a change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.versions import find_vllm, plugin_installed

if TYPE_CHECKING:
    from packaging.version import Version

__all__ = ["VllmRelease", "installed_vllm", "plugin_installed"]

# The oldest and newest release whose loading code was read.
OLDEST, NEWEST = "0.19.1", "0.33.0"
# The first release whose registry has this family's classes; 0.16.0 answers that they are not supported (vLLM's
# issue #36411 and release notes; the source was not read).
ARCHITECTURE_SINCE = "0.17"
# From here on a config is read into transformers' strict dataclasses, which take no integer for a float and no
# text for a number. 0.32.0, which wants transformers 5.16 or newer, was read; older releases were not.
STRICT_CONFIG_SINCE = "0.32"
# From here on GPTQ's `desc_act: true` is refused while the config is parsed (vLLM #54809).
NO_ACT_ORDER = "0.30"
# From here on a null `dynamic` breaks the construction of the draft.
NULL_DYNAMIC_BREAKS = "0.27.1"
# From here on an index entry without its file stops the worker; before, the file was skipped silently.
MISSING_FILE_STOPS = "0.26"
# From here on a tensor that no module takes ends the load; before, it was skipped, at most with a warning.
STRICT_NAMES = "0.25"
# The registry gained the text-only class, and a release later its draft and the name mapping of its tensors.
TEXT_ONLY_SINCE = "0.27"
TEXT_ONLY_MTP_SINCE = "0.28"
# From here on the draft's output head is built as the config says. Before, it is built unquantized and fails on a
# quantized head (0.22.1 was read, the releases between were not).
LM_HEAD_MTP_SINCE = "0.26"
# From here on any `-:` rule of `dynamic` with "mtp" in its text makes all of the draft's layers unquantized.
MTP_RULE_MEANS_ALL = "0.27.1"
# From here on a stored lm_head counts although the config ties it to the embedding, if the root says so too.
# 0.29.0 and later were seen to do so, and 0.26.0 not to.
UNTIES_SINCE = "0.29"
# From here on patterns of compressed-tensors' `ignore` are tried on the names of fused modules too.
FUSED_PATTERNS_SINCE = "0.30"
# From here on `num_speculative_tokens_per_batch_size` of `--speculative-config` is right for this family; None: no
# release was seen to be. 0.26.0 and later have it. With it stock 0.32.0 decodes wrongly on a CPU wherever fewer are
# drafted than `num_speculative_tokens` says: log-probabilities are 3.3 nats off with one of two, and 4.2 with none,
# where BF16 is 0.03 (tests/serving/test_decode_steps.py, which fails once that is mended). It was model runner V1;
# V2, which GPUs have by default from 0.29 on, was not run. In V1 it also takes full CUDA graphs away (vLLM #49548).
DRAFTS_BY_BATCH_SINCE: str | None = None
# The methods of `quantization_config` that vLLM has a class for, and the release in which they were read.
METHODS_READ = "0.32"
METHODS = frozenset({
    "awq", "auto_awq", "awq_marlin", "auto_gptq", "gptq", "gptq_marlin", "inc", "auto-round", "compressed-tensors",
    "fp8", "fbgemm_fp8", "fp_quant", "modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed", "humming",
    "experts_int8", "quark", "moe_wna16", "torchao", "mxfp4", "gpt_oss_mxfp4", "deepseek_v4_fp8", "online",
    "fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "int8_per_channel_weight_only", "nvfp4_per_token",
    "mxfp8",
})  # fmt: skip
# Methods that 0.19.1 or 0.26.0 had, and those that 0.19.1 lacks.
OLD_METHODS = frozenset({"bitsandbytes", "gguf", "petit_nvfp4", "cpu_awq"})
# It refuses these without --allow-deprecated-quantization.
DEPRECATED_METHODS = frozenset({"fbgemm_fp8", "fp_quant"})
# vLLM's parsers, by the release that first had them.
TOOL_PARSERS = {"qwen3_coder": "0.19", "qwen3_xml": "0.19", "hermes": "0.19", "qwen3_json": "0.32"}
REASONING_PARSERS = {"qwen3": "0.19"}


@dataclass(frozen=True, slots=True)
class VllmRelease:
    """One release of vLLM; ``text`` is its version."""

    text: str

    def __post_init__(self) -> None:
        self.version  # noqa: B018 - refuse a bad version here, not in a rule

    @property
    def version(self) -> Version:
        """The parsed version.

        Raises:
            HybridError: ``text`` is not a version.
        """
        from packaging.version import InvalidVersion, Version

        try:
            return Version(self.text)
        except InvalidVersion:
            raise HybridError(
                f"{self.text!r} is not a vLLM version", remedy="Give one like 0.33 or 0.19.1."
            ) from None

    def at_least(self, other: str) -> bool:
        """Whether this is release ``other`` or newer; a build or release candidate counts as its release."""
        from packaging.version import Version

        return Version(self.version.base_version) >= Version(other)

    @property
    def cpu(self) -> bool:
        """Whether this is a build for CPUs."""
        return self.version.local is not None and "cpu" in self.version.local

    def __str__(self) -> str:
        return self.text


def drafts_by_batch(release: VllmRelease | None) -> bool:
    """Whether a release drafts rightly with a number for each batch size; not if it is not known."""
    return (
        release is not None and DRAFTS_BY_BATCH_SINCE is not None and release.at_least(DRAFTS_BY_BATCH_SINCE)
    )


def installed_vllm() -> VllmRelease | None:
    """Return the release installed in this environment, without importing it; None if there is none."""
    text = find_vllm()
    try:
        return None if text is None else VllmRelease(text)
    except HybridError:
        return None
