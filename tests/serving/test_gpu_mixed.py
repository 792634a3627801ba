"""On a GPU: 64 mixed requests with ``"prefill": "a8"``, drafts and prefix caching; no row of decoding in 8 bits.

    python -m pytest tests/serving/test_gpu_mixed.py -m gpu

Needs humming-kernels as vLLM 0.33 has it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")
pytest.importorskip("humming")

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

pytestmark = [pytest.mark.gpu, pytest.mark.engine]

from .mixed_requests import NEW, REQUESTS  # noqa: E402


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = Path(tmp_path_factory.mktemp("mixed"), "out.json")
    command = [sys.executable, "-m", "tests.serving.mixed_requests", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_every_request_is_served_and_prefixes_are_found_again(served: dict[str, Any]) -> None:
    assert served["replies"] == [NEW] * REQUESTS
    assert served["hits"] > 0


def test_prompts_take_8_bits_alone_and_beside_decoding(served: dict[str, Any]) -> None:
    assert any(step["a8"] and not step["decoded"] for step in served["steps"])
    assert any(step["a8"] and step["decoded"] for step in served["steps"])


def test_no_row_of_decoding_takes_8_bits(served: dict[str, Any]) -> None:
    """A call takes its last rows in 8 bits, and prompts are a step's last rows: no more than those."""
    for step in served["steps"]:
        assert max(step["a8"], default=0) <= step["prompts"], step


def test_the_guard_has_looked_at_every_layer_in_8_bits(served: dict[str, Any]) -> None:
    assert served["errors"]
    assert all(error is not None and error < 0.05 for error in served["errors"].values()), served["errors"]
