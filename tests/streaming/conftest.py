"""Short documents of the trained model's own tokens, and rounded copies of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.streaming.rounded import rounded, short_documents


@pytest.fixture(scope="session")
def documents() -> list[list[int]]:
    return short_documents()


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a rounded copy of the trained model, once per session."""
    made: dict[str, Path] = {}

    def make(bits: int = 4, **how: Any) -> Path:
        key = f"{bits}-{how}"
        if key not in made:
            made[key] = rounded(tmp_path_factory.mktemp("rounded") / f"w{bits}", bits, **how)
        return made[key]

    return make
