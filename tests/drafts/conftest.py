"""What the plugin says, for tests of drafts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from vllm_qwen36_plugin._log import logger


@pytest.fixture
def shown() -> Iterator[Callable[[], str]]:
    """What the plugin logged so far, a line each."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: "\n".join(lines)
    logger.removeHandler(handler)
    logger.setLevel(level)
