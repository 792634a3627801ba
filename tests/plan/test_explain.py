"""What a start-up log means: lines as vLLM 0.19.1, 0.26.0, 0.32.0 and 0.33.0 print them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.plan import StartupLog, explain, parse_log, read_log, sentences

from .conftest import Full

GIB = 1 << 30


def config_line(version: str, **more: object) -> str:
    told = {"max_seq_len": 200000, "kv_cache_dtype": "fp8", "enable_prefix_caching": True, **more}
    words = ", ".join(f"{name}={value}" for name, value in told.items())
    return (
        f"(EngineCore_DP0 pid=7) INFO 11-30 20:15:35 [core.py:105] Initializing a V1 LLM engine "
        f"(v{version}) with config: "
        "model='./Qwen3.6-27B-W4A16-G128', speculative_config=SpeculativeConfig(method='mtp', "
        f"model='./Qwen3.6-27B-W4A16-G128', num_spec_tokens=2), tokenizer='x', tensor_parallel_size=1, {words}\n"
    )


def old_log(gib: float, tokens: int, length: int) -> str:
    """As 0.19.1 has it."""
    return (
        "INFO [utils.py:233] non-default args: {'model_tag': './Qwen3.6-27B-W4A16-G128', 'max_num_seqs': 8, "
        "'gpu_memory_utilization': 0.95}\n"
        + config_line("0.19.1", max_seq_len=length)
        + "INFO [config.py:281] Setting attention block size to 1600 tokens to ensure that attention page size is "
        ">= mamba page size.\n"
        "INFO [gpu_model_runner.py:4837] Model loading took 18.23 GiB memory and 9.1 seconds\n"
        "INFO [backends.py:391] Compiling a graph for compile range (1, 2048) takes 31.02 s\n"
        f"INFO [gpu_worker.py:436] Available KV cache memory: {gib} GiB\n"
        f"INFO [kv_cache_utils.py:1319] GPU KV cache size: {tokens:,} tokens\n"
        f"INFO [kv_cache_utils.py:1324] Maximum concurrency for {length:,} tokens per request: 3.11x\n"
        "INFO [gpu_model_runner.py:5900] Graph capturing finished in 12 secs, took 0.31 GiB\n"
    )


@pytest.mark.parametrize(
    ("gib", "tokens", "card", "length"), [(21.79, 166_400, "166K", 200_000), (9.86, 75_200, "75K", 262_144)]
)
def test_the_reference_card_s_rows_come_out_and_are_a_quarter(
    full: Full, gib: float, tokens: int, card: str, length: int
) -> None:
    """21.79 and 9.86 GiB are rounded: within 0.005 GiB the count of one group of four is the card's."""
    assert f"{tokens // 1000}K" == card
    found = explain(parse_log(old_log(gib, tokens, length)), full("reference"))
    assert found.counted == "one group"
    assert found.groups == 4
    assert found.alone == pytest.approx(4 * tokens, rel=0.07)
    first, second, *_ = sentences(found)
    assert "1/4 of the cache" in first
    assert "34,816 bytes" in second


def test_what_the_log_tells_is_found() -> None:
    log = parse_log(old_log(21.79, 166_400, 200_000))
    assert (log.version, log.model) == ("0.19.1", "./Qwen3.6-27B-W4A16-G128")
    assert (log.length, log.kv, log.drafts, log.sequences) == (200_000, "fp8", 2, 8)
    assert (log.prefix_caching, log.compiled, log.utilization) == (True, True, 0.95)
    assert (log.block_tokens, log.concurrency) == (1600, 3.11)
    assert log.weight_bytes == int(18.23 * GIB)
    assert log.graph_bytes == int(0.31 * GIB)
    assert log.cache_bytes == int(21.79 * GIB)


def test_newer_releases_count_whole_requests(full: Full) -> None:
    text = (
        config_line("0.33.0", max_seq_len=100000)
        + "INFO [core.py] Directly load AOT compilation from path /x\n"
        + "INFO [gpu_worker.py:700] Available KV cache memory: 8.0 GiB\n"
        + "INFO [kv_cache_utils.py:1140] GPU KV cache size: 205,333 tokens, Maximum concurrency for 100,000 tokens "
        "per request: 2.05x\n"
    )
    found = explain(parse_log(text), full("static-mse"))
    assert found.counted == "requests"
    assert found.log.compiled is False
    first, *rest = sentences(found)
    assert "with another --max-model-len it is another" in first
    assert found.alone == found.layout.tokens(8 * GIB, 1)
    assert f"{found.alone:,} tokens" in rest[0]
    assert "start again" not in {gain.change for gain in found.gains}


def test_a_count_that_nothing_here_gives_is_called_unknown(full: Full) -> None:
    text = old_log(21.79, 123_456, 200_000)
    found = explain(parse_log(text), full("reference"))
    assert found.counted == "unknown"
    assert "neither way of counting" in next(iter(sentences(found)))


def test_gains_are_tokens_for_the_same_sequences(full: Full) -> None:
    log = replace(parse_log(old_log(9.86, 75_200, 200_000)), utilization=0.9)
    found = explain(log, full("reference"))
    gains = {gain.change: gain.tokens for gain in found.gains}
    assert found.sequences == 8
    for change in ("no drafts", "1 in place of 2 drafts", "--mamba-ssm-cache-dtype float16"):
        assert gains[change] > found.each
    assert gains["no drafts"] > gains["1 in place of 2 drafts"]
    assert gains["--kv-cache-dtype int4_per_token_head"] > found.each
    assert "--kv-cache-dtype fp8" not in gains
    assert gains["start again"] is None
    assert any("0.95" in change for change in gains)
    assert any("limit-mm-per-prompt" in change for change in gains)


def test_a_start_that_failed_for_its_cache_is_explained(full: Full) -> None:
    text = config_line("0.32.0", max_seq_len=262144) + (
        "ValueError: To serve at least one request with the model's max seq len (262144), (9.12 GiB KV "
        "cache is needed, "
        "which is larger than the available KV cache memory (3.42 GiB). Based on the available memory, "
        "the estimated "
        "maximum model length is 86400."
    )
    found = explain(parse_log(text), full("static-mse"))
    said = list(sentences(found))
    assert "did not start" in said[0]
    assert "9.1 GiB" in said[0]
    assert found.alone < 262144


def test_the_last_start_of_a_log_counts() -> None:
    log = parse_log(old_log(9.86, 75_200, 262_144) + old_log(21.79, 166_400, 200_000))
    assert (log.tokens, log.length) == (166_400, 200_000)


def test_a_cpu_engine_s_log(original: DemoCheckpoint) -> None:
    """As vLLM 0.32.0's CPU build prints it for the demo with 1 GiB."""
    text = (
        config_line("0.32.0", max_seq_len=512, kv_cache_dtype="auto", enable_prefix_caching=False)
        + "INFO [cpu_worker.py:233] Explicitly set (1.0/23.5) GiB for KV cache on node 0.\n"
        + "INFO [kv_cache_utils.py:2327] CPU KV cache size: 65,536 tokens, Maximum concurrency for 512 tokens "
        "per request: 128.00x\n"
    )
    found = explain(parse_log(text), Checkpoint.open(original.path))
    assert found.log.device == "CPU"
    assert found.counted == "requests"


def test_colours_do_not_hide_a_line() -> None:
    log = parse_log("\x1b[1;36m(EngineCore)\x1b[0;0m INFO Available KV cache memory: \x1b[1m3.5\x1b[0m GiB")
    assert log.cache_bytes == int(3.5 * GIB)


@pytest.mark.parametrize("text", ["", "INFO nothing of the kind", "\x00\xff" * 50])
def test_a_log_without_the_line_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.log"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(HybridError, match="no line about a KV cache"):
        read_log(file)


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HybridError, match="cannot be read"):
        read_log(tmp_path / "no.log")
    with pytest.raises(HybridError, match="cannot be read"):
        read_log(tmp_path)


def test_what_the_log_must_tell_is_asked_for(full: Full) -> None:
    with pytest.raises(HybridError, match="how much memory"):
        explain(StartupLog(tokens=1000, length=100), full("reference"))
    with pytest.raises(HybridError, match="int3"):
        explain(StartupLog(tokens=1000, length=100, cache_bytes=GIB, kv="int3"), full("reference"))


def test_what_mtp_takes_is_more_than_the_reference_card_says(full: Full) -> None:
    """The card says 0.5 GiB. Its head alone is 0.79 GiB; an H200 with vLLM 0.26 had 0.90 GiB less cache with it.

    What it takes of the tokens is more than that: states for drafts and a layer of keys and values.
    """
    import json

    from gptq_hybrid.memory import fit

    without, with_mtp = (
        fit(full("reference"), 45 * GIB, drafts=n, kv_dtype="fp8", sequences=8, images=True) for n in (0, 2)
    )
    head = without.cache - with_mtp.cache
    assert head / GIB == pytest.approx(0.79, abs=0.01)
    runs = json.loads((Path(__file__).parents[2] / "bench/drafts/engine.json").read_text())["runs"]
    measured = runs["none"]["kv_cache"]["bytes"] - runs["stock"]["kv_cache"]["bytes"]
    assert measured / GIB == pytest.approx(0.90, abs=0.01)
    assert without.tokens - with_mtp.tokens > head // with_mtp.layout.token_bytes // 17
