"""On two GPUs: `vllm serve` over both says what one says, and accepts the same drafts.

    python -m pytest tests/serving/test_gpu_ranks.py -m gpu -n 0 -k "act_order and demo"

Needs this distribution installed, for vLLM finds the plugin by its entry point; no gptqmodel. Checkpoints are
rounded to nearest here, each in the layout of a recipe: `act_order` of `reference`, `natural` of `static-mse`,
`eight_bits` of `compact`. The mini model is served in act order alone: stock vLLM refuses to split its `down_proj`,
640 rows in groups of 128. If QWEN36_TWO_GPUS names a folder with ``reference``, ``static-mse`` and ``compact``, as
`qwen36 quantize` writes them, these are served in place of the constructed model.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.common.vllm_server import Acceptance, vllm_server
from gptq_hybrid.demo import build_demo_checkpoint
from tests.streaming.rounded import CHECKPOINT, rounded, short_documents

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

if torch.cuda.device_count() < 2:
    pytest.skip("there are no two CUDA devices", allow_module_level=True)

pytestmark = [pytest.mark.gpu, pytest.mark.engine]

MTP = r"mtp\.(?:fc|layers\.0\.(?:self_attn\.[qkvo]|mlp\.(?:gate|up|down))_proj)"
ARGUMENTS = [
    "--dtype", "bfloat16", "--max-model-len", "512", "--max-num-seqs", "8",
    "--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", str(4 << 30),
    "--gdn-prefill-backend", "triton", "--attention-backend", "TRITON_ATTN",
    "--limit-mm-per-prompt", '{"image": 0, "video": 0}',
    # The mini model's vision tower has one head.
    "--mm-encoder-tp-mode", "data",
    "--speculative-config", '{"method": "mtp", "num_speculative_tokens": 2}',
]  # fmt: skip
RECIPES = {"act_order": "reference", "natural": "static-mse", "eight_bits": "compact"}
NEW = 48


@dataclass(frozen=True)
class Served:
    """Token ids of the replies, the server's count of drafts, and its log."""

    ids: list[list[int]]
    acceptance: Acceptance
    log: str


def prompts(vocabulary: int) -> list[list[int]]:
    return [[token % (vocabulary - 8) for token in ids] for ids in short_documents()]


def make(folder: Path, layout: str, model: str) -> Path:
    """A checkpoint of that layout, of the constructed model or of the mini model."""
    if model == "demo" and (made := os.environ.get("QWEN36_TWO_GPUS")):
        return Path(made, RECIPES[layout])
    source = CHECKPOINT if model == "mini" else build_demo_checkpoint(folder / "original").path
    if layout == "act_order":
        return rounded(folder / "w4", source=source, act_order=3, also=MTP)
    if layout == "eight_bits":
        eight = {r"+:^(?:lm_head|mtp\.)": {"bits": 8}}
        return rounded(folder / "w4", source=source, also=MTP, dynamic=eight)
    return rounded(folder / "w4", source=source)


def serve(path: Path, gpus: int, log: Path, options: dict[str, Any]) -> Served:
    vocabulary = json.loads((path / "config.json").read_text())
    size = int(vocabulary.get("text_config", vocabulary)["vocab_size"])
    arguments = [str(path), *ARGUMENTS, "--tensor-parallel-size", str(gpus)]
    arguments += ["--additional-config", json.dumps({"qwen36": options})]
    # A first start tunes kernels.
    with vllm_server(arguments, log=log, timeout=540) as server:
        body = {"model": server.model, "prompt": prompts(size), "max_tokens": NEW, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        choices = sorted(
            server.post("/v1/completions", body)["choices"], key=lambda choice: int(choice["index"])
        )
        ids = [choice["token_ids"] for choice in choices]
        return Served(ids, server.acceptance(), log.read_text(errors="replace"))


@pytest.fixture(
    scope="module",
    params=[*(("demo", layout) for layout in RECIPES), ("mini", "act_order")],
    ids="-".join,
)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Served]:
    """What one GPU said, and what two did."""
    model, layout = request.param
    folder = tmp_path_factory.mktemp(f"{model}-{layout}")
    path = make(folder, layout, model)
    return [serve(path, gpus, folder / f"{gpus}.log", {}) for gpus in (1, 2)]


def test_greedy_text_is_that_of_one_gpu(both: list[Served]) -> None:
    """Sums over two GPUs round otherwise: where two tokens are near equal a reply may go on another way."""
    one, two = both
    same = [
        next((n for n, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), NEW)
        for a, b in zip(one.ids, two.ids, strict=True)
    ]
    assert sum(same) >= 0.8 * NEW * len(same), same


def test_as_many_drafts_are_accepted_as_on_one_gpu(both: list[Served]) -> None:
    one, two = (served.acceptance for served in both)
    assert one.accepted > 0
    assert abs(one.length - two.length) <= 0.15 * one.length


def test_nothing_was_left_off_over_two_gpus(both: list[Served]) -> None:
    log = both[1].log
    assert log.count("MTP head verified: 15 tensors loaded") == 1
    assert "drafts from W8" in log
    assert "on each of 2 GPUs" in log
    for left in (
        "drafts from its own weights",
        "drafts stay as vLLM makes them",
        "is off because",
        "is off for",
    ):
        assert left not in log
