"""Token ids into an engine and out of it, timed."""

from __future__ import annotations

import time
from typing import Any

_PROMPT = 32


def prompts(batch: int, vocabulary: int) -> list[dict[str, list[int]]]:
    """Short prompts of token ids, different in each."""
    rows = [
        [(7919 * (row + 1) + 104729 * i) % (vocabulary - 8) for i in range(_PROMPT)] for row in range(batch)
    ]
    return [{"prompt_token_ids": ids} for ids in rows]


def generate(llm: Any, given: list[dict[str, list[int]]], new: int) -> tuple[float, list[list[int]]]:
    """Seconds, and the tokens that came.

    Raises:
        RuntimeError: fewer than ``new`` tokens came.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
    begin = time.perf_counter()
    outputs = llm.generate(given, sampling, use_tqdm=False)
    seconds = time.perf_counter() - begin
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    if any(len(ids) != new for ids in tokens):
        raise RuntimeError(f"vLLM stopped before {new} tokens")
    return seconds, tokens
