"""Fixtures of the plugin's tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from vllm_qwen36_plugin._log import logger


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def shown() -> Iterator[Callable[[], str]]:
    """What the plugin logged so far, a line each; the same whether vLLM has configured logging or not."""
    handler, level = _Lines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: "\n".join(handler.lines)
    logger.removeHandler(handler)
    logger.setLevel(level)
