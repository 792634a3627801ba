"""Checkpoints to break: every base of the corpus, and a private copy of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.demo.builder import DemoCheckpoint
from tests.corpus import Bases, Workshop


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, quantized: Callable[..., Any]) -> Bases:
    """The good checkpoints of the corpus, each made at its first use."""
    return Bases(tmp_path_factory.mktemp("bases"), lambda recipe: Path(quantized(recipe).path))


@pytest.fixture
def shop(build: Callable[..., DemoCheckpoint], tmp_path: Path) -> Workshop:
    """A private copy of the constructed checkpoint with its head in ``mtp.safetensors``."""
    return Workshop(build(mtp="separate").path, tmp_path / "copy")
