"""`bench.prefill.host` on a CPU, in a process of its own: it puts stand-ins where Triton and vLLM's op would be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")

pytestmark = pytest.mark.engine  # no engine, but vLLM is imported: some seconds
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which it would use")
def test_a_replay_costs_the_host_less_than_vllms_python(tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    given = [str(out), "--rows", "2", "--calls", "20", "--rounds", "3"]
    command = [sys.executable, "-m", "bench.prefill.host", *given]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert said.returncode == 0, said.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["stand_in"]
    assert found["replayed"]
    assert found["tiles"] == 3
    assert found["environment"]["processor"]
    assert {"torch", "python"} <= set(found["environment"])
    assert list(found["ways"]) == ["straight", "vLLM's Python", "stock, general", "stock", "exact"]
    # 11 to 22 where nothing else runs.
    assert found["ways"]["stock"]["least"] < 0.8 * found["ways"]["vLLM's Python"]["least"]
