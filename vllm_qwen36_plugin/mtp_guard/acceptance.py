"""Watch the acceptance of drafts in a running server, and warn once when it stays near nothing.

A head of another fine-tune, or one whose rows are shuffled, cannot be told by its values: only its drafts tell.
vLLM loads this class from the entry-point group ``vllm.stat_logger_plugins`` (0.19.1 to 0.33.0 have it) in the
process that serves, for both of its model runners, and calls it after each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.upstream.vllm_config import mtp_draft

# A sound head has half or more of its first tokens accepted; of damaged ones at most 2 of 90 tokens were seen.
_DRAFTS = 400
_NEAR_NOTHING = 0.05
_MESSAGE = (
    "MTP drafts are hardly ever accepted: %d of %d draft tokens in %d drafts. The text is right, and slower than "
    "without drafts. The head of %s may be of another fine-tune, or damaged in a way that its values do not show: "
    "graft the original's with `qwen36 repair FOLDER --mtp-from OWNER/ORIGINAL`. Or the tokens in use are missing "
    'from the list that drafts are picked from: `"draft_vocab": 0` under "qwen36" in --additional-config takes all.'
)


@dataclass(slots=True)
class Watch:
    """Adds up drafts, and says when a stretch of them came to almost nothing. It says so once."""

    drafts: int = 0
    proposed: int = 0
    accepted: int = 0
    said: bool = False

    def add(self, drafts: int, proposed: int, accepted: int) -> tuple[int, int, int] | None:
        """Add what a step drafted; return accepted and proposed tokens and drafts of a stretch to warn of."""
        if self.said:
            return None
        self.drafts += drafts
        self.proposed += proposed
        self.accepted += accepted
        if self.drafts < _DRAFTS:
            return None
        stretch = self.accepted, self.proposed, self.drafts
        self.drafts = self.proposed = self.accepted = 0
        self.said = stretch[0] < _NEAR_NOTHING * stretch[1]
        return stretch if self.said else None


class AcceptanceWatch(StatLoggerBase):  # type: ignore[misc]
    """vLLM's statistics of each step, of which it looks at the drafts; nothing without MTP of this family.

    ``"mtp_check": "off"`` turns it off too.
    """

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._watch: Watch | None = None
        self._model = ""
        try:
            options = PluginOptions.of(getattr(vllm_config, "additional_config", None))
            draft = mtp_draft(vllm_config)
            if draft is not None and options.mtp_check == "on":
                self._watch, self._model = Watch(), draft.model
        except Exception as error:  # noqa: BLE001 - what only watches must not keep a model from serving
            logger.warning(
                "vllm-qwen36-plugin: the watch on acceptance is off because %s", error or repr(error)
            )

    def record(
        self,
        scheduler_stats: Any = None,
        iteration_stats: Any = None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
        **_: Any,
    ) -> None:
        if self._watch is None or scheduler_stats is None:
            return
        try:
            stats = scheduler_stats.spec_decoding_stats
            if stats is None:
                return
            told = self._watch.add(stats.num_drafts, stats.num_draft_tokens, stats.num_accepted_tokens)
        except (AttributeError, TypeError) as error:
            self._watch = None
            logger.warning("vllm-qwen36-plugin: the watch on acceptance is off because %s", error)
            return
        if told is not None:
            logger.warning(_MESSAGE, *told, self._model)

    def log_engine_initialized(self) -> None:
        """Nothing to say at the start."""
