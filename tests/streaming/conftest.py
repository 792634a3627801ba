"""Short documents of the trained model's own tokens, and rounded copies of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.streaming.rounded import CHECKPOINT, HELDOUT, rounded

LENGTHS = (70, 33, 129, 12, 64)


@pytest.fixture(scope="session")
def documents() -> list[list[int]]:
    """Held-out text of several domains; lengths on both sides of the Gated-DeltaNet chunk of 64."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    found = []
    for domain, length in zip(("en", "python", "zh", "rust", "chat"), LENGTHS, strict=True):
        text = json.loads((HELDOUT / f"{domain}.jsonl").read_text().splitlines()[0])["text"]
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"][:length])
    assert tuple(map(len, found)) == LENGTHS
    return found


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A rounded copy of the trained model, made once a session."""
    made: dict[str, Path] = {}

    def make(bits: int = 4, **how: Any) -> Path:
        key = f"{bits}-{how}"
        if key not in made:
            made[key] = rounded(tmp_path_factory.mktemp("rounded") / f"w{bits}", bits, **how)
        return made[key]

    return make
