"""Fixtures of the plugin's tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from tests.log_lines import lines_from


@pytest.fixture
def shown() -> Iterator[Callable[[], str]]:
    """What the plugin logged so far."""
    with lines_from(logging.DEBUG) as lines:
        yield lines
