"""The plugin's logger."""

from __future__ import annotations

import logging

from gptq_hybrid.common.text import printable

# vLLM configures handlers for the `vllm` logger alone; a child of it is shown in vLLM's own format.
logger = logging.getLogger("vllm.qwen36")


def _made_printable(record: logging.LogRecord) -> bool:
    """Names of files and tensors are somebody else's: no character of them may move a terminal's cursor."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


if not logger.filters:
    logger.addFilter(_made_printable)
