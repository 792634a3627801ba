"""One stock `vllm serve` over two ranks, its MTP layer in 8 bits: what it says is the same, drafts are accepted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.vllm_server import Acceptance, cpu_arguments, cpu_environment, vllm_server
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor.serve_line import serve_arguments

pytestmark = pytest.mark.engine

PROMPTS = ["What are you?", "def fibonacci(n):", "请用一句话介绍你自己。"]
MAX_TOKENS = 60
RANKS = 2


@dataclass(frozen=True)
class Served:
    """Token ids of the replies, the server's count of drafts, and its log."""

    ids: list[list[int]]
    acceptance: Acceptance
    log: str


def cores() -> str:
    """For vLLM: this worker's core for both ranks, as another worker's engine has the next one."""
    mine = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", str(min(os.sched_getaffinity(0))))
    return "|".join([mine] * RANKS)


@pytest.fixture(scope="module")
def served(quantized: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Served:
    log = tmp_path_factory.mktemp("ranks") / "vllm.log"
    arguments = serve_arguments(Checkpoint.open(quantized("static").path), drafts=2, chat=False)
    arguments += ["--tensor-parallel-size", str(RANKS), "--max-model-len", "512", "--max-num-seqs", "4"]
    arguments += ["--additional-config", json.dumps({"qwen36": {"draft": "w8"}}), *cpu_arguments()]
    environment = cpu_environment() | {"VLLM_CPU_OMP_THREADS_BIND": cores()}
    with vllm_server(arguments, log=log, environment=environment) as server:
        choices = [
            server.chat(prompt, max_tokens=MAX_TOKENS, return_token_ids=True)["choices"][0]
            for prompt in PROMPTS
        ]
        return Served(
            [choice["token_ids"] for choice in choices],
            server.acceptance(),
            log.read_text(errors="replace"),
        )


def test_every_reply_is_what_the_model_was_constructed_to_say(
    served: Served, original: DemoCheckpoint
) -> None:
    for ids in served.ids:
        assert len(ids) == MAX_TOKENS
        assert ids[1:] == original.expected_ids(ids[:1], MAX_TOKENS - 1)


def test_every_draft_is_accepted(served: Served) -> None:
    acceptance = served.acceptance
    assert acceptance.proposed >= len(PROMPTS) * (MAX_TOKENS // 3) * 2 * 0.9
    assert acceptance.accepted == acceptance.proposed


def test_the_mtp_layer_is_in_8_bits_and_the_head_is_the_models(served: Served) -> None:
    assert "drafts from W8: 5 MTP linears" in served.log
    assert "the model's output head" in served.log
    assert "drafts from its own weights" not in served.log
    assert "drafts stay as vLLM makes them" not in served.log
