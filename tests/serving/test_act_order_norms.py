"""Norms that write in order, in a whole vLLM with a compiled graph: the same numbers, no gather behind a norm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_hybrid.streaming import make_batches
from tests.streaming.rounded import rounded, short_documents
from tests.streaming.test_forward import streamed_logits

from .test_act_order_serving import log_probabilities, rms

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rounded(tmp_path_factory.mktemp("norms") / "w4", act_order=3)


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("served")
    documents, out = folder / "documents.json", folder / "out.json"
    documents.write_text(json.dumps(short_documents()))
    command = [
        sys.executable,
        "-m",
        "tests.serving.norms_in_order",
        str(checkpoint),
        str(documents),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    answer: dict[str, Any] = json.loads(out.read_text())
    return answer


def test_every_norm_before_a_linear_writes_in_order(served: dict[str, Any], checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    layers = config.get("text_config", config)["num_hidden_layers"]
    assert served["class"] == "vllm_qwen36_plugin.models"
    assert served["in_order"] == 2 * layers
    assert served["gathering"] == ["o_proj", "out_proj"]


def test_log_probabilities_are_those_of_the_dequantized_weights_within_bf16(
    served: dict[str, Any], checkpoint: Path
) -> None:
    documents = short_documents()
    exact, rounded_16 = (
        streamed_logits(checkpoint, make_batches(documents, 10_000), dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    off, bf16 = [], []
    for number, (ids, values) in enumerate(zip(documents, served["log_probabilities"], strict=True)):
        expected = log_probabilities(exact[number], ids)
        off.append(torch.tensor(values) - expected)
        bf16.append(log_probabilities(rounded_16[number], ids) - expected)
    # As of a served checkpoint whose linears gather. A norm in another order is off by 1 nat and more.
    assert rms(off) <= 1.5 * rms(bf16)


def test_vllms_key_of_compiled_graphs_knows(served: dict[str, Any]) -> None:
    assert served["additional"]["qwen36_graphs"]["act order, norms"] == "always"
