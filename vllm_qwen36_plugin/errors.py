"""The plugin's errors. Each text is written for the person who started vLLM."""

from __future__ import annotations

from gptq_hybrid.common.text import printable


class RefusalError(ValueError):
    """A refusal to start. A ``ValueError``, so that pydantic folds it into its validation error.

    Names from a checkpoint or a command line are part of its text, and are made safe for a terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class OptionsError(RefusalError):
    """An option in ``--additional-config`` that does not exist, has a wrong value, or cannot be done here."""


class MtpHeadError(RefusalError):
    """MTP was asked for, and the head of this checkpoint cannot draft."""


class ActOrderError(RefusalError):
    """The ``g_idx`` of this checkpoint cannot be served, or would be served wrong."""


class CompatError(RuntimeError):
    """Something below vLLM's public interface is not what this plugin expects."""
