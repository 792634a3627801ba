"""On a GPU: a stock `vllm serve`, compiled, with what the plugin does by default and drafts from fewer bytes.

    python -m pytest tests/serving/test_gpu_serving.py -m gpu

Needs this distribution installed, for vLLM finds the plugin by its entry point; no gptqmodel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import DraftVocab, write_draft_vocab
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.checkpoint.vocabulary import read_vocabulary
from gptq_hybrid.common.vllm_server import Server, vllm_server
from tests.streaming.rounded import read_config, rounded, short_documents

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

pytestmark = [pytest.mark.gpu, pytest.mark.engine]

OPTIONS = {"qwen36": {"draft": "w8", "draft_vocab": 7000}}
ARGUMENTS = [
    "--dtype", "bfloat16", "--max-model-len", "512", "--max-num-seqs", "8",
    "--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(4 << 30),
    "--gdn-prefill-backend", "triton", "--attention-backend", "TRITON_ATTN",
    "--limit-mm-per-prompt", '{"image": 0, "video": 0}', "--enable-sleep-mode",
    "--speculative-config", '{"method": "mtp", "num_speculative_tokens": 2}',
    "--additional-config", json.dumps(OPTIONS),
]  # fmt: skip
NEW = 32


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "vllm.log"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[Server]:
    checkpoint = rounded(tmp_path_factory.mktemp("gpu") / "w4")
    spoken = [token for ids in short_documents() for token in ids]
    size = int(read_config(checkpoint)["text_config"]["vocab_size"])
    ranked = tuple(dict.fromkeys([*spoken, *range(size)]))
    vocabulary = read_vocabulary(LocalFiles(checkpoint))
    write_draft_vocab(checkpoint / "draft_vocab.json", DraftVocab(vocabulary.sha256, size, ranked, {}, {}))
    # A first start tunes kernels; sleeping is asked for by HTTP in this mode alone.
    with vllm_server(
        [str(checkpoint), *ARGUMENTS], log=log, environment={"VLLM_SERVER_DEV_MODE": "1"}, timeout=400
    ) as running:
        yield running


def ask(server: Server, prompts: list[list[int]], **sampling: Any) -> list[dict[str, Any]]:
    body = {"model": server.model, "prompt": prompts, "max_tokens": NEW, "ignore_eos": True, **sampling}
    choices = server.post("/v1/completions", {**body, "return_token_ids": True, "logprobs": 0})["choices"]
    return sorted(choices, key=lambda choice: choice["index"])


def test_drafts_are_accepted_and_start_up_says_what_they_are_made_of(server: Server, log: Path) -> None:
    ask(server, short_documents(), temperature=0)
    # Rounded to nearest, and text it was not trained on: stock's own head has 0.6 to 0.8 there.
    assert server.acceptance().rate > 0.4
    text = log.read_text(errors="replace")
    assert "drafts from W8: 5 MTP linears" in text
    lines = [line for line in text.splitlines() if "qwen36" in line]
    assert any("for the likeliest" in line for line in lines), lines
    assert "drafts from its own weights" not in text
    assert "drafts stay as vLLM makes them" not in text


def test_sampled_replies_are_likely_text(server: Server) -> None:
    choices = ask(server, short_documents(), temperature=0.7, seed=1)
    drawn = [value for choice in choices for value in choice["logprobs"]["token_logprobs"]]
    # Noise over 8,192 tokens has -9.
    assert sum(drawn) / len(drawn) > -4


def test_replies_after_a_sleep_are_those_before(server: Server) -> None:
    before = [choice["token_ids"] for choice in ask(server, short_documents(), temperature=0)]
    _post(server, "/sleep?level=1")
    _post(server, "/wake_up")
    accepted = server.acceptance().accepted
    after = [choice["token_ids"] for choice in ask(server, short_documents(), temperature=0)]
    assert after == before
    assert server.acceptance().accepted > accepted


def test_replies_after_the_deepest_sleep_and_a_reload_are_those_before(server: Server) -> None:
    """Level 2 drops all weights: the model's are loaded anew, those of drafts were kept."""
    before = [choice["token_ids"] for choice in ask(server, short_documents(), temperature=0)]
    rate = server.acceptance().rate
    _post(server, "/sleep?level=2")
    _post(server, "/wake_up?tags=weights")
    _post(server, "/collective_rpc", {"method": "reload_weights"})
    _post(server, "/wake_up?tags=kv_cache")
    counted = server.acceptance()
    after = [choice["token_ids"] for choice in ask(server, short_documents(), temperature=0)]
    assert after == before
    more = server.acceptance()
    assert (more.accepted - counted.accepted) / (more.proposed - counted.proposed) > rate - 0.1


def _post(server: Server, path: str, body: dict[str, Any] | None = None) -> None:
    import urllib.request

    data = json.dumps(body).encode() if body else b""
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        assert response.status == 200
