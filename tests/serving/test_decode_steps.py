"""Steps of decoding, one engine a way: log-probabilities of every step against a reference, drafts from anything.

What is compared is what served users read: a prefill in one go does not pass through the kernels of decoding, the
states kept between steps, or the rows that verify drafts. On a CUDA device the same runs there:

    python -m pytest tests/serving/test_decode_steps.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_hybrid.doctor.vllm_releases import VllmRelease, drafts_by_batch
from gptq_hybrid.streaming import make_batches
from tests.streaming.rounded import rounded, short_documents
from tests.streaming.test_forward import streamed_logits

pytestmark = pytest.mark.engine

DRAFTS = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 2}}
BY_BATCH = {"num_speculative_tokens_per_batch_size": [[1, 2, 2], [3, 8, 0]]}
# Of each way: the plugin's options, vLLM's arguments, and whether the checkpoint is in act order.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "none": ({}, {}, False),
    "bf16": ({"draft": "bf16"}, DRAFTS, False),
    "auto": ({}, DRAFTS, False),
    "w8": ({"draft": "w8", "prefill": "off"}, DRAFTS, False),
    "w4": ({"draft": "w4"}, DRAFTS, False),
    "act order": ({}, DRAFTS, True),
    "float16 states": ({}, DRAFTS | {"mamba_ssm_cache_dtype": "float16"}, False),
    "by batch": ({}, {"speculative_config": DRAFTS["speculative_config"] | BY_BATCH}, False),
}
RIGHT = [way for way in WAYS if way != "by batch"]
NEW = 24


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The trained model in four bits, without and with act order."""
    folder = tmp_path_factory.mktemp("steps")
    return {False: rounded(folder / "w4"), True: rounded(folder / "act-order", act_order=3)}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [ids[:33] for ids in short_documents()]


@pytest.fixture(scope="module")
def decoded(
    checkpoints: dict[bool, Path], prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("decoded")
    plan, out = folder / "plan.json", folder / "out.json"
    ways = {
        way: {"checkpoint": str(checkpoints[act_order]), "options": options, "engine": engine}
        for way, (options, engine, act_order) in WAYS.items()
    }
    plan.write_text(json.dumps({"prompts": prompts, "new": NEW, "ways": ways}))
    command = [sys.executable, "-m", "tests.serving.decode_steps", str(plan), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return {"log": done.stdout + done.stderr, **json.loads(out.read_text())}


@cache
def logits(
    checkpoint: Path, rows: tuple[tuple[int, ...], ...], dtype: torch.dtype
) -> dict[int, torch.Tensor]:
    return streamed_logits(checkpoint, make_batches([list(row) for row in rows], 10_000), dtype)


def errors(way: dict[str, Any], prompts: list[list[int]], checkpoint: Path) -> tuple[float, float, int]:
    """Root mean square of what served and what BF16 log-probabilities are off, nats; and steps with the best token.

    Of the likeliest tokens of every step, against float32 arithmetic on the dequantized weights along that reply.
    """
    rows = tuple((*ids, *reply["ids"]) for ids, reply in zip(prompts, way["replies"], strict=True))
    exact, rounded_16 = (logits(checkpoint, rows, dtype) for dtype in (torch.float32, torch.bfloat16))
    off, noise, best = [], [], 0
    for number, (ids, reply) in enumerate(zip(prompts, way["replies"], strict=True)):
        assert len(reply["steps"]) == len(reply["ids"]) == NEW
        for at, step in enumerate(reply["steps"], len(ids) - 1):
            tokens = [int(token) for token in step]
            expected = exact[number][at].float().log_softmax(-1)
            off.append(torch.tensor(list(step.values())) - expected[tokens])
            noise.append(rounded_16[number][at].float().log_softmax(-1)[tokens] - expected[tokens])
            best += int(expected.argmax() == rows[number][at + 1])
    squares = (float(torch.cat(values).square().mean().sqrt()) for values in (off, noise))
    return (*squares, best)  # type: ignore[return-value]


@pytest.mark.parametrize("way", RIGHT)
def test_every_step_is_that_of_the_dequantized_weights_within_bf16(
    decoded: dict[str, Any], prompts: list[list[int]], checkpoints: dict[bool, Path], way: str
) -> None:
    off, noise, best = errors(decoded[way], prompts, checkpoints[WAYS[way][2]])
    # Two BF16 engines round in other places. A state, or rows that verify drafts, gone wrong are nats off.
    assert off <= 1.5 * noise
    assert best >= 0.97 * NEW * len(prompts)


@pytest.mark.parametrize("way", [way for way in RIGHT if way != "none"])
def test_drafts_were_verified_some_accepted_and_some_not(decoded: dict[str, Any], way: str) -> None:
    assert 0 < decoded[way]["accepted"] < decoded[way]["proposed"]


def test_each_way_ran_what_it_is_named_for(decoded: dict[str, Any]) -> None:
    for words in ("an output head in W4", "drafts from W8: 5 MTP", "drafts from W4: 5 MTP"):
        assert words in decoded["log"], words
    assert "vllm-qwen36-plugin serves it, at the cost of permuting" in decoded["log"]
    assert {way: decoded[way]["states"] for way in WAYS} == {
        way: ["torch.float16" if way == "float16 states" else "torch.float32"] for way in WAYS
    }


def test_drafts_by_batch_are_recommended_from_the_release_on_that_gets_them_right(
    decoded: dict[str, Any], prompts: list[list[int]], checkpoints: dict[bool, Path]
) -> None:
    off, noise, _ = errors(decoded["by batch"], prompts, checkpoints[False])
    release, right = VllmRelease(version("vllm")), off <= 1.5 * noise
    assert right == drafts_by_batch(release), (
        f"vLLM {release} is {off:.3f} nats off with drafts by batch size, where BF16 is {noise:.3f}: "
        "see DRAFTS_BY_BATCH_SINCE"
    )
