"""A workshop for checkpoints that hurt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_hybrid.demo.builder import DemoCheckpoint
from tests.corpus import Workshop


@pytest.fixture
def shop(build: Callable[..., DemoCheckpoint], tmp_path: Path) -> Workshop:
    return Workshop(build(mtp="separate").path, tmp_path / "copy")
