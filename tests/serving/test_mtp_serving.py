"""The stock `vllm serve`, as a process, over HTTP, on a checkpoint that gptqmodel quantized.

Two servers: with MTP and without. All tests here look at what they answered.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.vllm_server import Acceptance, cpu_arguments, cpu_environment, vllm_server
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor.serve_line import serve_arguments
from gptq_hybrid.live import Reading, advise, read, scrape
from gptq_hybrid.memory import CPU_ALIGNMENT, cache_layout

pytestmark = pytest.mark.engine

PROMPTS = [
    "What are you?", "Explain Gated DeltaNet.", "def fibonacci(n):", "Schreib ein Gedicht über Grafikkarten.",
    "请用一句话介绍你自己。", "Every token", "1 2 3 4", "lost head shows at once", "?", "A longer prompt. " * 12,
]  # fmt: skip
MAX_TOKENS = 40


@dataclass(frozen=True)
class Served:
    """What one server answered: token ids and text per prompt, and its own count of drafts."""

    ids: list[list[int]]
    texts: list[str]
    acceptance: Acceptance
    sampled: list[list[int]]
    accepted_of_sampled: int
    reading: Reading
    log: str
    processes_left: list[str]


def serve(path: Path, log: Path, drafts: int) -> Served:
    arguments = serve_arguments(Checkpoint.open(path), drafts=drafts, chat=False)
    arguments += ["--max-model-len", "512", "--max-num-seqs", "4", *cpu_arguments()]
    with vllm_server(arguments, log=log, environment=cpu_environment()) as server:
        choices = [
            server.chat(prompt, max_tokens=MAX_TOKENS, return_token_ids=True)["choices"][0]
            for prompt in PROMPTS
        ]
        acceptance = server.acceptance()
        # The constructed successor of a token is likely enough to be drawn each time.
        sampled = [
            server.chat(prompt, max_tokens=MAX_TOKENS, temperature=0.5, seed=1, return_token_ids=True)
            for prompt in PROMPTS[:4]
        ]
        accepted = server.acceptance().accepted - acceptance.accepted
        reading = read(scrape(server.url))
    left = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return Served(
        ids=[choice["token_ids"] for choice in choices],
        texts=[choice["message"]["content"] for choice in choices],
        acceptance=acceptance,
        sampled=[reply["choices"][0]["token_ids"] for reply in sampled],
        accepted_of_sampled=accepted,
        reading=reading,
        log=log.read_text(errors="replace"),
        processes_left=[line for line in left if str(path) in line],
    )


@pytest.fixture(scope="module")
def with_mtp(quantized: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(quantized("static").path, tmp_path_factory.mktemp("served") / "mtp.log", drafts=2)


@pytest.fixture(scope="module")
def without_mtp(quantized: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(quantized("static").path, tmp_path_factory.mktemp("served") / "plain.log", drafts=0)


def test_greedy_output_is_the_same_token_for_token(with_mtp: Served, without_mtp: Served) -> None:
    assert all(len(ids) == MAX_TOKENS for ids in without_mtp.ids)
    assert with_mtp.ids == without_mtp.ids


def test_the_quantized_model_says_what_it_was_constructed_to_say(
    without_mtp: Served, original: DemoCheckpoint
) -> None:
    for ids, text in zip(without_mtp.ids, without_mtp.texts, strict=True):
        assert ids[1:] == original.expected_ids(ids[:1], MAX_TOKENS - 1)
        assert "Every token of this tiny hybrid model has exactly one successor" in text


def test_every_draft_of_an_intact_head_is_accepted(with_mtp: Served) -> None:
    acceptance = with_mtp.acceptance
    assert acceptance.proposed >= len(PROMPTS) * (MAX_TOKENS // 3) * 2 * 0.9
    assert acceptance.accepted == acceptance.proposed
    assert acceptance.per_position == (acceptance.drafts, acceptance.drafts)
    assert acceptance.length == 3.0


def test_the_server_shows_the_plugin_and_what_it_does(with_mtp: Served, without_mtp: Served) -> None:
    look = with_mtp.reading
    assert look.plugin is not None
    assert (look.plugin["drafts"], look.plugin["device"]) == ("2", "cpu")
    assert {state.path: state.state for state in look.paths} == {
        "MTP head": "verified",
        "act order": "none",
        "drafts": "bf16",
    }
    assert look.counters.accepted >= with_mtp.acceptance.accepted > 0
    assert [finding for finding in advise(look) if finding.severity == "error"] == []
    bare = without_mtp.reading
    assert bare.plugin is not None
    assert bare.path("MTP head") is None
    assert [finding.rule for finding in advise(bare)] == ["no-drafts"]


def test_the_cache_is_as_large_as_computed(
    with_mtp: Served, without_mtp: Served, quantized: Callable[..., Any]
) -> None:
    checkpoint = Checkpoint.open(quantized("static").path)
    for served, drafts in ((with_mtp, 2), (without_mtp, 0)):
        layout = cache_layout(checkpoint, drafts=drafts, prefix_caching=False, alignment=CPU_ALIGNMENT)
        assert served.reading.number("kv_cache_size_tokens") == layout.reported_tokens(1 << 30, 512)


def test_sampled_replies_are_the_models_with_and_without_drafts(
    with_mtp: Served, without_mtp: Served, original: DemoCheckpoint
) -> None:
    for ids in with_mtp.sampled + without_mtp.sampled:
        assert len(ids) == MAX_TOKENS
        assert ids[1:] == original.expected_ids(ids[:1], MAX_TOKENS - 1)


def test_drafts_of_sampled_replies_are_accepted(with_mtp: Served) -> None:
    # Two of three tokens are drafts, and none is refused.
    assert with_mtp.accepted_of_sampled >= len(with_mtp.sampled) * (MAX_TOKENS // 3) * 2 * 0.9


def test_the_plugin_says_that_the_head_is_whole(with_mtp: Served) -> None:
    assert "MTP head verified" in with_mtp.log


def test_without_mtp_the_plugin_says_nothing_about_it(without_mtp: Served) -> None:
    assert without_mtp.acceptance.proposed == 0
    assert "MTP head" not in without_mtp.log


def test_no_process_is_left_behind(with_mtp: Served, without_mtp: Served) -> None:
    assert with_mtp.processes_left + without_mtp.processes_left == []
