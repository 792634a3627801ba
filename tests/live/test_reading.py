"""What a running server says is understood in every release's shape, and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import Severity
from gptq_hybrid.live import Counters, Reading, Scrape, advise, base_url, facts, read, scrape, summary

from .server import VERSIONS, metrics, models, plugin_metrics, serving


def reading(text: str, *, url: str = "http://10.0.0.1:8000", **first: Any) -> Reading:
    entry = {"id": "qwen", "root": "Qwen3.6-27B", "max_model_len": 200000, **first}
    return read(Scrape(url, text, (entry,), version="0.33.0"))


def rules(look: Reading) -> dict[str, str]:
    return {finding.rule: f"{finding.message} | {finding.remedy}" for finding in advise(look)}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_counters_of_each_release_are_found(version: str) -> None:
    look = reading(metrics(version))
    assert look.counters == Counters(
        drafts=400,
        proposed=800,
        accepted=500,
        per_position=(300, 200),
        cache_queries=100_000,
        cache_hits=32_000,
        preemptions=3,
        prompt_tokens=100_000,
        generation_tokens=900,
    )
    assert look.counters.position_rates == (0.75, 0.5)
    assert look.counters.acceptance.length == 2.25
    assert look.counters.hit_rate == 0.32
    assert look.prefix_caching is True
    assert look.hybrid
    assert look.number("block_size") == 1600


def test_what_is_said_names_model_version_plugin_and_acceptance() -> None:
    look = reading(metrics() + plugin_metrics(("prefill", "exact", "5120x14336 exact from 2048")))
    text = summary(look)
    assert "serves qwen on vLLM 0.33.0 with vllm-qwen36-plugin 0.1.0" in text
    assert "500 of 800 drafted tokens were accepted (62%), 2.25 tokens a step" in text
    told = dict(facts(look))
    assert told["accepted by position"] == "1: 75.0%, 2: 50.0%"
    assert told["prefix cache"].startswith("32.0% of prompt tokens")
    assert "blocks of 1,600 tokens" in told["prefix cache"]
    assert told["prefill"] == "exact: 5120x14336 exact from 2048"
    assert told["longest request"] == "200,000 tokens"


def test_a_server_in_order_has_no_finding() -> None:
    assert rules(reading(metrics(num_preemptions_total=0) + plugin_metrics())) == {}


def test_a_server_without_the_plugin_is_told_how_to_get_it() -> None:
    found = rules(reading(metrics(num_preemptions_total=0)))
    assert set(found) == {"no-plugin"}
    assert "VLLM_PLUGINS" in found["no-plugin"]


def test_a_path_that_is_off_is_named_with_its_reason() -> None:
    text = metrics() + plugin_metrics(
        ("prefill", "off", "vLLM moved its kernels"), ("drafts", "stock", "no FP8")
    )
    found = rules(reading(text))
    assert found["path-off"].startswith("prefill is off: vLLM moved its kernels")
    assert "no FP8" in found["drafts-stock"]


def test_preemptions_are_advised_on_with_the_command_that_computes_memory() -> None:
    assert "qwen36 check Qwen3.6-27B --gpu" in rules(reading(metrics()))["preemptions"]


DEAD = {
    "spec_decode_num_accepted_tokens_total": 0,
    "spec_decode_num_accepted_tokens_per_pos_total": 0,
    "num_preemptions_total": 0,
}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (("MTP head", "unchecked", "mtp_check is off"), "Start without `mtp_check: off`"),
        (("MTP head", "verified", "15 tensors"), "a head of another model"),
        (None, "qwen36 repair Qwen3.6-27B --mtp-from"),
    ],
)
def test_a_dead_head_is_an_error_with_the_likeliest_reason(state: Any, expected: str) -> None:
    text = metrics(**DEAD) + plugin_metrics(*([state] if state else []))
    findings = advise(reading(text))
    assert [(f.rule, f.severity) for f in findings] == [("dead-head", Severity.ERROR)]
    assert "none of 800 drafted tokens was accepted" in findings[0].message
    assert expected in findings[0].remedy


def test_a_dead_head_whose_folder_is_here_is_looked_up(original: DemoCheckpoint, tmp_path: Path) -> None:
    import json
    import shutil

    folder = tmp_path / "lost"
    shutil.copytree(original.path, folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    kept = {name: file for name, file in content["weight_map"].items() if not name.startswith("mtp.")}
    shards = {file for name, file in content["weight_map"].items() if name.startswith("mtp.")}
    from safetensors.torch import load_file, save_file

    for shard in shards:
        tensors = {n: t for n, t in load_file(folder / shard).items() if not n.startswith("mtp.")}
        save_file(tensors, folder / shard)
    index.write_text(json.dumps({**content, "weight_map": kept}))
    near = reading(metrics(**DEAD), url="http://127.0.0.1:8000", root=str(folder))
    (finding, *_) = advise(near)
    assert finding.rule == "dead-head"
    assert "15" in finding.message or "mtp" in finding.message.lower().partition("dead")[2]
    assert "qwen36 repair" in finding.remedy
    # Another machine's folder of the same name says nothing.
    far = reading(metrics(**DEAD), root=str(folder))
    assert advise(far)[0].message != finding.message


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"spec_decode_num_accepted_tokens_per_pos_total": 100}, "low-acceptance"),
        ({"num_requests_running": 12}, "drafts-in-a-crowd"),
    ],
)
def test_drafts_that_may_not_pay_are_pointed_at_tune(changes: dict[str, float], rule: str) -> None:
    found = rules(reading(metrics(num_preemptions_total=0, **changes) + plugin_metrics()))
    assert set(found) == {rule}
    assert "qwen36 tune drafts" in found[rule]


def test_late_drafts_are_told_from_a_low_first_one() -> None:
    text = metrics(num_preemptions_total=0) + plugin_metrics()
    text = text.replace('position="1"} 200.0', 'position="1"} 40.0')
    assert set(rules(reading(text))) == {"late-drafts"}


def test_too_few_drafts_are_not_judged() -> None:
    few = {"spec_decode_num_drafts_total": 10, "spec_decode_num_draft_tokens_total": 20}
    assert rules(reading(metrics(**(DEAD | few)) + plugin_metrics())) == {}


def test_all_drafts_accepted_is_suspicious_only_among_many() -> None:
    many = {"spec_decode_num_draft_tokens_total": 1000, "spec_decode_num_accepted_tokens_total": 1000}
    found = rules(reading(metrics(num_preemptions_total=0, **many) + plugin_metrics()))
    assert "all-accepted" in found
    some = dict.fromkeys(many, 198.0)
    assert "all-accepted" not in rules(reading(metrics(**some) + plugin_metrics()))


def test_a_server_without_drafts_is_told_the_flag() -> None:
    lines = [line for line in metrics().splitlines() if "spec_decode" not in line]
    found = rules(reading("\n".join(lines) + "\n" + plugin_metrics()))
    assert "--speculative-config" in found["no-drafts"]


def test_nan_logits_are_an_error() -> None:
    text = metrics(num_preemptions_total=0) + 'vllm:corrupted_requests_total{model_name="qwen"} 2.0\n'
    findings = advise(reading(text + plugin_metrics()))
    assert [(f.rule, f.severity) for f in findings] == [("nan-logits", Severity.ERROR)]


def test_a_cache_that_was_switched_off_is_advised_on_for_gpus_alone() -> None:
    text = metrics(num_preemptions_total=0).replace(
        'enable_prefix_caching="True"', 'enable_prefix_caching="False"'
    )
    assert set(rules(reading(text + plugin_metrics()))) == {"no-prefix-cache"}
    assert rules(reading(text + plugin_metrics(device="cpu"))) == {}


def test_a_server_without_counters_is_told_why() -> None:
    found = rules(reading("# TYPE http_requests counter\nhttp_requests 1.0\n" + plugin_metrics()))
    assert set(found) == {"no-counters"}


def test_two_engines_are_added_up() -> None:
    text = metrics()
    second = "\n".join(
        line.replace('engine="0"', 'engine="1"') for line in text.splitlines() if line[0] != "#"
    )
    assert reading(f"{text}{second}\n").counters.accepted == 1000


def test_a_window_counts_what_came_in_it() -> None:
    before = Counters(drafts=10, per_position=(5,), accepted=5)
    after = Counters(drafts=30, per_position=(20, 3), accepted=23)
    assert after.since(before) == Counters(drafts=20, per_position=(15, 3), accepted=18)
    # Started anew in between: its counts are all there is.
    assert before.since(after) == before


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("http://h:1/v1/", "http://h:1"),
        (" https://h/metrics ", "https://h"),
        ("http://h:1/v1/models", "http://h:1"),
    ],
)
def test_addresses_are_taken_as_people_give_them(text: str, url: str) -> None:
    assert base_url(text) == url


@pytest.mark.parametrize("text", ["", "ftp://h", "http://", "http://h:99999999", "http://h:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(HybridError, match="not the address"):
        base_url(text)


def test_pages_are_read_over_http() -> None:
    pages = {
        "/metrics": metrics() + plugin_metrics(),
        "/v1/models": models(),
        "/version": {"version": "0.33.0"},
    }
    with serving(pages) as url:
        look = read(scrape(f"{url}/v1"))
    assert (look.model, look.root, look.vllm) == ("qwen", "Qwen3.6-27B-W4A16-G128", "0.33.0")
    assert look.models_problem is None


def test_a_key_is_sent_and_its_absence_explained() -> None:
    def guarded(headers: Any) -> Any:
        return models() if headers.get("Authorization") == "Bearer secret" else 401

    with serving({"/metrics": metrics(), "/v1/models": guarded}) as url:
        assert read(scrape(url, api_key="secret")).models_problem is None
        look = read(scrape(url))
    assert look.model == "qwen"  # of the metrics' labels
    assert "--api-key" in rules(look)["no-models"]


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ({}, "status 404"),
        ({"/metrics": "<html>"}, "not in Prometheus's format"),
        ({"/metrics": 500}, "status 500"),
        ({"/metrics": "# TYPE vllm:x counter\nvllm:x{ 1\n"}, "cannot be read"),
    ],
)
def test_what_is_no_vllm_is_one_error(pages: dict[str, Any], words: str) -> None:
    with serving(pages) as url, pytest.raises(HybridError, match=words):
        read(scrape(url))


def test_nobody_at_home_is_one_error() -> None:
    with serving({}) as url:
        pass
    with pytest.raises(HybridError, match="nothing answers"):
        scrape(url)
