"""One stock `vllm serve` with everything a recipe can ask for: mixed bits, packed heads, no vision tower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.vllm_server import cpu_arguments, cpu_environment, vllm_server
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor.serve_line import serve_arguments

pytestmark = pytest.mark.engine

EVERYTHING = Path(__file__).parents[1] / "recipes" / "everything.toml"
PROMPTS = ["What are you?", "def fibonacci(n):", "请用一句话介绍你自己。", "A longer prompt. " * 12]
MAX_TOKENS = 40


def test_it_says_what_it_was_constructed_to_say_and_every_draft_is_accepted(
    quantized: Callable[..., Any], original: DemoCheckpoint, tmp_path: Path
) -> None:
    path, log = quantized(str(EVERYTHING)).path, tmp_path / "vllm.log"
    arguments = serve_arguments(Checkpoint.open(path), chat=False)
    assert "--limit-mm-per-prompt" in arguments
    arguments += ["--max-model-len", "512", "--max-num-seqs", "4", *cpu_arguments()]
    with vllm_server(arguments, log=log, environment=cpu_environment()) as server:
        choices = [
            server.chat(prompt, max_tokens=MAX_TOKENS, return_token_ids=True)["choices"][0]
            for prompt in PROMPTS
        ]
        acceptance = server.acceptance()
    for choice in choices:
        ids = choice["token_ids"]
        assert ids[1:] == original.expected_ids(ids[:1], MAX_TOKENS - 1)
    assert acceptance.proposed >= len(PROMPTS) * (MAX_TOKENS // 3) * 2 * 0.9
    assert acceptance.accepted == acceptance.proposed
    text = log.read_text(errors="replace")
    # 8 linears of four tensors and 7 norms came by; what is counted is the head's own 15.
    assert "MTP head verified: 15 tensors loaded" in text
    assert "DequantizedLinearKernel" in text
