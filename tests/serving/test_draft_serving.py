"""One stock `vllm serve` whose drafts come from 4 bits and a part of the vocabulary: what it says is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint, DraftVocab, write_draft_vocab
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.checkpoint.vocabulary import read_vocabulary
from gptq_hybrid.common.vllm_server import Acceptance, cpu_arguments, cpu_environment, vllm_server
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor.serve_line import serve_arguments

pytestmark = pytest.mark.engine

PROMPTS = ["What are you?", "def fibonacci(n):", "请用一句话介绍你自己。", "A longer prompt. " * 12]
MAX_TOKENS = 60
KEPT = 128


@dataclass(frozen=True)
class Served:
    """What the server answered to plain requests, what it counted meanwhile, and all else."""

    ids: list[list[int]]
    acceptance: Acceptance
    extra: dict[str, dict[str, Any]]
    log: str
    left_out: int


def list_without(checkpoint: Path, original: DemoCheckpoint, left_out: int) -> None:
    """A list of as few tokens as hold all that the model says but one."""
    size = len(original.next_token)
    spoken = [token for token in original.loop if token != left_out]
    others = [i for i in range(size) if i not in original.loop]
    ranked = tuple((spoken + others)[:KEPT])
    vocabulary = read_vocabulary(LocalFiles(checkpoint))
    write_draft_vocab(checkpoint / "draft_vocab.json", DraftVocab(vocabulary.sha256, size, ranked, {}, {}))


@pytest.fixture(scope="module")
def served(
    quantized: Callable[..., Any], original: DemoCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Served:
    folder = tmp_path_factory.mktemp("drafts")
    path, log = folder / "checkpoint", folder / "vllm.log"
    path.mkdir()
    for file in quantized("static").path.iterdir():
        (path / file.name).symlink_to(file)
    left_out = original.loop[len(original.loop) // 2]
    list_without(path, original, left_out)
    options = json.dumps({"qwen36": {"draft": "w4", "draft_vocab": KEPT}})
    arguments = serve_arguments(Checkpoint.open(path), drafts=2, chat=False)
    arguments += ["--max-model-len", "512", "--max-num-seqs", "4", "--additional-config", options]
    with vllm_server([*arguments, *cpu_arguments()], log=log, environment=cpu_environment()) as server:
        choices = [
            server.chat(prompt, max_tokens=MAX_TOKENS, return_token_ids=True)["choices"][0]
            for prompt in PROMPTS
        ]
        acceptance = server.acceptance()
        ask = {
            "the token that is never drafted alone": {"allowed_token_ids": [left_out]},
            "structured": {"structured_outputs": {"regex": "[0-9]{12}"}},
        }
        extra = {
            name: server.chat(PROMPTS[0], max_tokens=12, return_token_ids=True, **body)["choices"][0]
            for name, body in ask.items()
        }
    return Served(
        [choice["token_ids"] for choice in choices],
        acceptance,
        extra,
        log.read_text(errors="replace"),
        left_out,
    )


def steps(ids: list[int], left_out: int) -> tuple[int, int, int]:
    """Verification steps of a reply, and its first and second drafts that must have been accepted."""
    at, counts = 1, [0, 0, 0]  # the first token comes from the prompt
    while at < len(ids):
        counts[0] += 1
        accepted = 0
        for token in ids[at : at + 2]:
            if token == left_out:
                break
            accepted += 1
            counts[accepted] += 1
        at += accepted + 1
    return counts[0], counts[1], counts[2]


def test_every_reply_is_what_the_model_was_constructed_to_say(
    served: Served, original: DemoCheckpoint
) -> None:
    for ids in served.ids:
        assert served.left_out in ids
        assert ids[1:] == original.expected_ids(ids[:1], MAX_TOKENS - 1)


def test_drafts_are_accepted_but_for_the_token_that_is_not_on_the_list(served: Served) -> None:
    expected = [
        sum(counts) for counts in zip(*(steps(ids, served.left_out) for ids in served.ids), strict=True)
    ]
    acceptance = served.acceptance
    # At the end of a reply vLLM counts drafts that max_tokens cuts off, or makes none.
    slack = 2 * len(PROMPTS)
    assert abs(acceptance.drafts - expected[0]) <= slack
    assert all(abs(a - b) <= slack for a, b in zip(acceptance.per_position, expected[1:], strict=True))
    assert acceptance.accepted < acceptance.proposed


def test_a_token_outside_the_list_can_be_asked_for(served: Served) -> None:
    ids = served.extra["the token that is never drafted alone"]["token_ids"]
    assert set(ids) == {served.left_out}


def test_a_grammar_holds(served: Served) -> None:
    reply = served.extra["structured"]["message"]["content"]
    assert reply.isdigit()
    assert len(reply) == 12


def test_start_up_says_what_drafts_are_made_of(served: Served) -> None:
    assert "drafts from W4: 5 MTP linears" in served.log
    assert f"for the likeliest {KEPT} of" in served.log
    assert "drafts use the model's own output head" not in served.log
    assert "drafts from its own weights" not in served.log
