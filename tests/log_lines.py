"""What the plugin logged, for the fixtures `shown` of several folders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@contextmanager
def lines_from(least: int) -> Iterator[Callable[[], str]]:
    """Of level ``least`` on, a line each; the same whether vLLM has configured logging or not."""
    from vllm_qwen36_plugin.log import logger

    handler, level = _Lines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(least)
    try:
        yield lambda: "\n".join(handler.lines)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
