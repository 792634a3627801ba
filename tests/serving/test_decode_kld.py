"""The measurement of divergence by decoding: it follows the document, and measures what is served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.streaming.rounded import CHECKPOINT

from .decode_kld import divergences, interval

pytestmark = pytest.mark.engine


def test_divergence_is_none_of_what_is_equal_and_that_of_two_tokens_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    assert divergences(logits, logits + 5).tolist() == pytest.approx([0, 0], abs=1e-6)
    # ln 2 less half of both: 0.5 ln(0.5 / 0.9) + 0.5 ln(0.5 / 0.1).
    other = torch.tensor([[0.9, 0.1]]).log()
    assert float(divergences(logits[:1], other)) == pytest.approx(0.510826, abs=1e-5)


def test_an_interval_has_its_mean_inside_and_shrinks_with_more_documents() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(1))
    few, many = interval(values[:20]), interval(values)
    for mean, low, high in (few, many):
        assert low < mean < high
    assert many[2] - many[1] < few[2] - few[1]


def test_the_original_served_step_by_step_diverges_by_no_more_than_bf16_rounds(tmp_path: Path) -> None:
    """Half a percent of what four bits cost. A state, a cache or a token gone wrong are a thousand times that."""
    out = tmp_path / "part.json"
    command = [sys.executable, "-m", "tests.serving.decode_kld", str(out), str(CHECKPOINT)]
    sizes = ["--length", "48", "--documents", "1"]
    subprocess.run([*command, *sizes, "--one", str(CHECKPOINT)], check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["in_one_go"][0] == 0
    assert 0 < found["decoded"][0] < 5e-4
