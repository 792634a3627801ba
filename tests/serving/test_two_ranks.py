"""Stock `vllm serve` over two ranks: act order, the MTP layer in 8 bits, drafts from a part of the vocabulary.

What it says is the same as on one rank, and so is which drafts are accepted. A head that is damaged where one rank
has it ends both.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.vllm_server import (
    Acceptance,
    ServerExitedError,
    cpu_arguments,
    cpu_environment,
    vllm_server,
)
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor.serve_line import serve_arguments
from tests.serving.test_draft_serving import KEPT, list_without, steps
from tests.streaming.rounded import copy_with, read_config, read_tensors, rounded

pytestmark = pytest.mark.engine

PROMPTS = ["What are you?", "def fibonacci(n):", "请用一句话介绍你自己。"]
MAX_TOKENS = 60
RANKS = 2


@dataclass(frozen=True)
class Served:
    """Token ids of the replies, the server's count of drafts, the token that is never drafted, and the log."""

    ids: list[list[int]]
    acceptance: Acceptance
    left_out: int
    log: str


def cores() -> str:
    """For vLLM: this worker's core for both ranks, as another worker's engine has the next one."""
    mine = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", str(min(os.sched_getaffinity(0))))
    return "|".join([mine] * RANKS)


def over_two_ranks(checkpoint: Path, options: dict[str, object]) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of the server."""
    arguments = serve_arguments(Checkpoint.open(checkpoint), drafts=2, chat=False)
    arguments += ["--tensor-parallel-size", str(RANKS), "--max-model-len", "512", "--max-num-seqs", "4"]
    arguments += ["--additional-config", json.dumps({"qwen36": options}), *cpu_arguments()]
    return arguments, cpu_environment() | {"VLLM_CPU_OMP_THREADS_BIND": cores()}


@pytest.fixture(scope="module")
def served(original: DemoCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("ranks")
    path, log = rounded(folder / "checkpoint", source=original.path, act_order=3), folder / "vllm.log"
    left_out = original.loop[len(original.loop) // 2]
    list_without(path, original, left_out)
    arguments, environment = over_two_ranks(path, {"draft": "w8", "draft_vocab": KEPT})
    with vllm_server(arguments, log=log, environment=environment) as server:
        choices = [
            server.chat(prompt, max_tokens=MAX_TOKENS, return_token_ids=True)["choices"][0]
            for prompt in PROMPTS
        ]
        ids = [choice["token_ids"] for choice in choices]
        return Served(ids, server.acceptance(), left_out, log.read_text(errors="replace"))


def test_every_reply_is_what_the_model_was_constructed_to_say(
    served: Served, original: DemoCheckpoint
) -> None:
    for ids in served.ids:
        assert len(ids) == MAX_TOKENS
        assert ids[1:] == original.expected_ids(ids[:1], MAX_TOKENS - 1)


def test_every_draft_is_accepted_but_of_the_token_that_is_not_on_the_list(served: Served) -> None:
    each = [steps(ids, served.left_out) for ids in served.ids]
    expected = [sum(counts) for counts in zip(*each, strict=True)]
    acceptance = served.acceptance
    # At the end of a reply vLLM counts drafts that max_tokens cuts off, or makes none.
    slack = 2 * len(PROMPTS)
    assert abs(acceptance.drafts - expected[0]) <= slack
    assert all(abs(a - b) <= slack for a, b in zip(acceptance.per_position, expected[1:], strict=True))
    assert 0 < acceptance.accepted < acceptance.proposed


def test_what_was_done_is_said_once_and_for_each_gpu(served: Served) -> None:
    for line in (
        "MTP head verified: 15 tensors loaded",
        "drafts from W8: 5 MTP linears",
        f"for the likeliest {KEPT} of 1,024 tokens (on each of 2 GPUs)",
        "act order over 2 GPUs: each stores 384 rows of out_proj",
    ):
        assert served.log.count(line) == 1, line
    assert "quantization=qwen36_gptq" in served.log
    assert "drafts from its own weights" not in served.log
    assert "drafts use the model's own output head" not in served.log
    assert "drafts stay as vLLM makes them" not in served.log


def test_a_head_that_is_damaged_where_one_rank_has_it_ends_both_with_one_message(
    original: DemoCheckpoint, tmp_path: Path
) -> None:
    """A part of zeros, as a download that was cut off leaves: the tensor as a whole does not hold only zeros."""
    tensors, config = read_tensors(original.path), read_config(original.path)
    gate = tensors["mtp.layers.0.mlp.gate_proj.weight"] = tensors["mtp.layers.0.mlp.gate_proj.weight"].clone()
    gate[len(gate) // RANKS :] = 0
    path = copy_with(tmp_path / "damaged", tensors, config, original.path)
    arguments, environment = over_two_ranks(path, {})
    log = tmp_path / "vllm.log"
    with (
        pytest.raises(ServerExitedError) as caught,
        vllm_server(arguments, log=log, environment=environment),
    ):
        pytest.fail("a damaged head was served")
    assert caught.value.code == 1
    text = log.read_text(errors="replace")
    wrong = "on GPU 1 of 2: model.layers.0.mlp.gate_up_proj.weight (shard 0) holds only zeros"
    assert text.count(wrong) == 1
    assert text.count("but the MTP head of") == 1
