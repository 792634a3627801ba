"""Headers of a 27B, as recipes write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from tests.memory.full_size import write_27b

Full = Callable[[str | None], Checkpoint]


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Full:
    made: dict[str | None, Checkpoint] = {}

    def open_27b(recipe: str | None) -> Checkpoint:
        if recipe not in made:
            folder = tmp_path_factory.mktemp("plan") / (recipe or "original")
            made[recipe] = Checkpoint.open(write_27b(folder, recipe))
        return made[recipe]

    return open_27b
