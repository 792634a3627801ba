"""What a plan answers holds by the arithmetic of the cache, whatever was left open."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor import vllm_releases
from gptq_hybrid.doctor.place import place_named
from gptq_hybrid.doctor.vllm_releases import VllmRelease
from gptq_hybrid.hooks import GpuProfile
from gptq_hybrid.memory import RESERVE, VISION, cache_layout, fit
from gptq_hybrid.plan import (
    Question,
    answers,
    card_given,
    flags,
    read_acceptance,
    read_bandwidth,
    serving,
    solve,
    speed,
)
from gptq_hybrid.plan.speed import HEAD_IN_W4, LINEAR_IN_W8, MOST_OF_CACHE

from .conftest import Full

GIB = 1 << 30


def card(name: str) -> GpuProfile:
    found = place_named(name)
    assert isinstance(found, GpuProfile)
    return found


def plan(full: Full, recipe: str, name: str, **asked: Any) -> Any:
    return solve(full(recipe), Question(card(name), **asked))


@pytest.mark.parametrize(
    "left_open", [pair for n in (1, 2, 3, 4) for pair in itertools.combinations("cndk", n)]
)
def test_whatever_is_left_open_is_found_and_holds(full: Full, left_open: tuple[str, ...]) -> None:
    given = {"c": ("context", 30_000), "n": ("concurrency", 2), "d": ("drafts", 2), "k": ("kv", "fp8")}
    asked = dict(value for letter, value in given.items() if letter not in left_open)
    found = plan(full, "compact", "RTX 4090", **asked)
    assert found.sure in ("fits", "should fit")
    assert len(found.solved) == len(left_open)
    fitted = found.fit
    for name, value in asked.items():
        got = {"context": fitted.context, "concurrency": fitted.sequences, "drafts": fitted.drafts}
        assert got.get(name, fitted.kv_dtype) == value
    tokens = min(found.tokens, fitted.tokens)
    assert fitted.layout.bytes_for(tokens, 1) <= fitted.cache
    if "context" in asked or "concurrency" in asked:
        assert fitted.layout.at_once(fitted.cache, found.tokens) >= fitted.sequences
    assert f"--max-num-seqs {fitted.sequences} --max-model-len {fitted.context}" in found.command.line


def test_nothing_given_is_what_check_prints(full: Full) -> None:
    found = plan(full, "static-mse", "RTX 4090")
    line = serving(full("static-mse"), card("RTX 4090")).line
    assert found.command.line.replace(" --max-num-batched-tokens 2048", "") == line


@pytest.mark.parametrize(
    ("recipe", "name"), [("compact", "RTX 4090"), ("static-mse", "L40S"), ("reference", "H200")]
)
@pytest.mark.parametrize("drafts", [0, 2])
def test_the_parts_add_up_to_the_card(full: Full, recipe: str, name: str, drafts: int) -> None:
    found = plan(full, recipe, name, context=20_000, concurrency=1, drafts=drafts)
    assert found.option.holds
    assert sum(part.bytes for part in found.figures) == found.question.memory
    assert all(part.low <= part.bytes <= part.high for part in found.figures)
    assert {part.kind for part in found.figures if part.group == "weights"} == {"exact"}
    assert {part.kind for part in found.figures if part.group == "running"} == {"estimated"}
    states = sum(part.bytes for part in found.figures if part.group == "states" and part.part != "rounding")
    layout = found.fit.layout
    assert states == layout.state_layers * layout.state_bytes * layout.states


def test_does_24_gb_hold_100_000_tokens(full: Full) -> None:
    held = plan(full, "compact", "RTX 4090", context=100_000)
    assert held.sure == "should fit"
    assert held.fit.drafts == 2
    lacking = plan(full, "static-mse", "RTX 4090", context=100_000, drafts=2)
    assert not lacking.option.holds
    assert lacking.missing > GIB
    said = " ".join(answers(lacking))
    assert "int4_per_token_head" in said
    assert "`compact`" in said
    # As many bytes as are missing make it hold.
    more = fit(
        full("static-mse"),
        int((lacking.fit.usable + lacking.missing) / 0.98 / 0.95) + 1024,
        drafts=2,
        kv_dtype="fp8",
        context=100_000,
        images=False,
    )
    assert more.fits


def test_margins_are_what_the_least_and_the_most_leave(full: Full) -> None:
    def sure(**asked: Any) -> str:
        return str(plan(full, "compact", "RTX 4090", concurrency=2, drafts=2, kv="fp8", **asked).sure)

    found = plan(full, "compact", "RTX 4090", concurrency=2, drafts=2)
    low, high = found.margin
    assert low < found.option.longest < high
    assert sure(context=low) == "fits"
    assert sure(context=found.option.longest) == "should fit"
    assert sure(context=high) == "may fit"
    assert sure(context=high + 1) == "does not fit"


def test_the_widest_kv_type_that_holds_is_taken_where_all_else_is_given(full: Full) -> None:
    roomy = plan(full, "compact", "RTX 4090", context=20_000, concurrency=2, drafts=2)
    tight = plan(full, "compact", "RTX 4090", context=40_000, concurrency=2, drafts=2)
    assert (roomy.fit.kv_dtype, tight.fit.kv_dtype) == ("auto", "fp8")
    assert plan(full, "compact", "RTX 3090", context=40_000, drafts=0).fit.kv_dtype == "auto"


def test_agents_whose_contexts_do_not_stay_cached_are_better_off_without_mtp(full: Full) -> None:
    """As reported of a 4090: with two drafts 8 agents took 2.3 times as long, as prefixes were lost."""
    found = plan(full, "compact", "RTX 4090", context=12_000, concurrency=8, kv="int4_per_token_head")
    by = {option.fit.drafts: option for option in found.drafts}
    assert by[0].kept >= 8 > by[2].kept
    assert by[2].round > by[0].round
    assert found.fit.drafts == 0
    assert any(sentence.startswith("MTP is better off") for sentence in answers(found))
    alone = plan(full, "compact", "RTX 4090", context=12_000, concurrency=1)
    assert alone.fit.drafts >= 2
    assert any(sentence.startswith("MTP pays") for sentence in answers(alone))


def test_speeds_are_near_the_one_report_of_this_model_on_a_4090(full: Full) -> None:
    """Stock vLLM 0.30, INT4, text alone: 53 tokens a second, 82.3 with two drafts; prompts 2,814 to 2,888."""
    question = Question(card("RTX 4090"))
    for drafts, reported in ((0, 53.1), (2, 82.3)):
        fitted = fit(full("static-mse"), 24 * GIB, drafts=drafts, kv_dtype="fp8", images=False)
        found = speed(full("static-mse"), question, fitted, batch=1, tokens=1024)
        assert found is not None
        assert found.each == pytest.approx(reported, rel=0.12)
        assert found.prompt == pytest.approx(2850, rel=0.05)


def test_without_a_bandwidth_nothing_is_said_of_speed(full: Full) -> None:
    found = solve(full("compact"), Question(card_given("24GiB"), concurrency=1))
    assert all(option.speed is None for option in found.drafts)
    assert "--bandwidth" in " ".join(answers(found))
    told = solve(full("compact"), Question(card_given("24GiB", "1008GB/s"), concurrency=1))
    assert all(option.speed for option in told.drafts)
    # 8 bits are not assumed of a card of which nothing else is known.
    assert told.fit.kv_dtype == "auto"


def test_more_gpus_leave_each_a_share_of_weights_heads_and_states(full: Full) -> None:
    one, two = (
        plan(full, "static-mse", "RTX 4090", concurrency=2, tensor_parallel=n, drafts=2) for n in (1, 2)
    )
    assert two.fit.layout.state_bytes * 2 == one.fit.layout.state_bytes
    assert two.fit.layout.token_bytes * 2 == one.fit.layout.token_bytes
    assert two.option.longest > 4 * one.option.longest
    assert "--tensor-parallel-size 2" in two.command.line
    with pytest.raises(HybridError, match="cannot be divided among 3"):
        plan(full, "static-mse", "RTX 4090", tensor_parallel=3)


def test_states_of_fewer_bits_leave_more_tokens(full: Full) -> None:
    usual, half = (
        plan(full, "compact", "RTX 4090", concurrency=4, drafts=2, state=s) for s in ("auto", "float16")
    )
    assert half.option.longest > usual.option.longest
    assert "--mamba-ssm-cache-dtype float16" in half.command.line


def test_a_block_never_exceeds_the_tokens_of_a_step(full: Full) -> None:
    """vLLM refuses that with prefix caching: seen with 0.26, int4 keys and values and 2,048 tokens."""
    found = plan(full, "compact", "RTX 4090", kv="int4_per_token_head", concurrency=1)
    assert found.fit.layout.block_tokens > 2048
    assert found.fit.batched_tokens >= found.fit.layout.block_tokens
    assert f"--max-num-batched-tokens {found.fit.batched_tokens}" in found.command.line


def test_flashinfer_s_exported_states_are_counted(full: Full) -> None:
    usual, exporting = (
        plan(full, "static-mse", "H100", concurrency=16, drafts=2, flashinfer=on) for on in (False, True)
    )
    assert exporting.fit.layout.states == usual.fit.layout.states + 1
    assert exporting.fit.layout.block_tokens % 64 == 0
    assert exporting.option.longest < usual.option.longest


def test_states_in_16_bits_are_recommended_with_what_they_bring(full: Full) -> None:
    found = plan(full, "static-mse", "RTX 4090", concurrency=2, drafts=2)
    [sentence] = [text for text in answers(found) if "--mamba-ssm-cache-dtype float16" in text]
    halved = plan(full, "static-mse", "RTX 4090", concurrency=2, drafts=2, state="float16")
    assert f"{found.fit.tokens:,} tokens of cache {halved.fit.tokens:,} with 2 at once" in sentence
    assert halved.fit.tokens > found.fit.tokens
    assert not any("Free as far" in text for text in answers(halved))


def test_images_take_their_tower_and_a_profile(full: Full) -> None:
    text, images = (
        plan(full, "static-mse", "L40S", concurrency=4, drafts=2, images=on) for on in (False, True)
    )
    tower = next(part.bytes for part in images.figures if part.part == "vision tower")
    assert text.fit.cache - images.fit.cache == tower + VISION.expected
    assert "vision profile" in {part.part for part in images.figures}


def test_each_flag_has_a_reason(full: Full) -> None:
    found = plan(full, "compact", "RTX 4090", context=30_000, drafts=2)
    told = dict(flags(found))
    assert all(reason and "of the profile" not in reason for reason in told.values())
    assert " ".join(told).count("--") == found.command.line.count(" --")


def test_recipes_are_sized_as_they_would_be_served(full: Full) -> None:
    found = plan(full, "static-mse", "RTX 4090", concurrency=1, drafts=2)
    by = {name: (size, tokens) for name, size, tokens in found.recipes}
    own = found.fit.loaded
    assert by["static-mse"][0] == own
    assert by["static-mse"][1] == found.option.longest
    assert by["compact"][1] > by["static-mse"][1] > by["careful"][1]


def test_the_reserve_of_check_is_the_sum_of_the_parts() -> None:
    assert RESERVE == 2.5 * GIB


def test_drafts_fall_with_the_size_of_the_batch_where_they_stop_paying(full: Full) -> None:
    """Past what memory can feed, a rejected draft is work that brought nothing."""
    unlikely = (0.7, 0.4, 0.2)
    large = plan(full, "compact", "H200", context=2000, concurrency=256, drafts=3, acceptance=unlikely)
    counts = [drafts for _, _, drafts in large.schedule]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[0] == 3 > counts[-1]
    assert [large.schedule[0][0], large.schedule[-1][1]] == [1, 256]
    assert any("num_speculative_tokens_per_batch_size" in sentence for sentence in answers(large))
    assert plan(full, "static-mse", "L40S", concurrency=8, drafts=3).schedule == []


def test_what_a_draft_reads_is_what_the_plugin_makes_by_default() -> None:
    torch = pytest.importorskip("torch")
    from vllm_qwen36_plugin.draft_head import settings
    from vllm_qwen36_plugin.draft_head.methods import quantized_bytes

    weight = torch.empty(4096, 5120, device="meta")
    assert weight.numel() * LINEAR_IN_W8 == quantized_bytes(weight, "w8")
    assert weight.numel() * HEAD_IN_W4 == quantized_bytes(weight, "w4")
    assert settings._MOST_OF_CACHE == MOST_OF_CACHE


def test_drafts_cost_less_with_the_plugin_and_so_more_of_them_pay(full: Full) -> None:
    """Of 16 requests on an L40S, whose cache leaves the copy of the output head its room."""
    stock, ours = (
        plan(full, "static-mse", "L40S", concurrency=16, context=8000, plugin=on) for on in (False, True)
    )
    assert [option.speed.seconds for option in ours.drafts[1:]] < [
        option.speed.seconds for option in stock.drafts[1:]
    ]
    assert ours.drafts[0].speed == stock.drafts[0].speed
    assert ours.fit.drafts > stock.fit.drafts
    # 24 GB leave none: the MTP layer alone is cheaper.
    small = [plan(full, "static-mse", "RTX 4090", plugin=on).drafts[2].speed.seconds for on in (False, True)]
    assert 0.95 < small[1] / small[0] < 1


def test_a_third_draft_is_taken_where_it_costs_no_context(full: Full) -> None:
    for name, drafts in (("L40S", 3), ("H200", 3), ("RTX 4090", 2)):
        found = plan(full, "static-mse", name, plugin=True)
        assert found.fit.drafts == drafts, name
        assert found.fit.sequences == plan(full, "static-mse", name, plugin=True, drafts=2).fit.sequences


def test_drafts_by_batch_are_in_the_line_of_a_release_that_gets_them_right(
    full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = pytest.importorskip("vllm.v1.spec_decode.dynamic.utils")
    asked: dict[str, Any] = {"context": 2000, "concurrency": 256, "drafts": 3, "acceptance": (0.7, 0.4, 0.2)}
    key = "num_speculative_tokens_per_batch_size"

    def of(release: str | None) -> Any:
        return plan(full, "compact", "H200", vllm=None if release is None else VllmRelease(release), **asked)

    assert key not in of("0.33.0").command.line
    assert any("gave wrong text" in sentence for sentence in answers(of("0.33.0")))
    monkeypatch.setattr(vllm_releases, "DRAFTS_BY_BATCH_SINCE", "0.33")
    assert [key in of(release).command.line for release in (None, "0.32.0", "0.33.0")] == [False, False, True]
    found = of("0.33.0")
    config = json.loads(flag(found.command.arguments, "--speculative-config"))
    assert config["num_speculative_tokens"] == 3
    # As vLLM itself reads it.
    lookup = utils.build_dynamic_sd_schedule_lookup(config[key], 256, 3)
    assert lookup[1] == 3
    assert lookup[256] < 3
    assert any("the line has it" in sentence for sentence in answers(found))


def flag(arguments: tuple[str, ...], name: str) -> str:
    return arguments[arguments.index(name) + 1]


@pytest.mark.parametrize("drafts", [5, 8])
def test_more_drafts_than_the_table_usually_shows_are_shown(full: Full, drafts: int) -> None:
    found = plan(full, "compact", "L40S", concurrency=2, drafts=drafts)
    assert [option.fit.drafts for option in found.drafts] == [0, 1, 2, 3, 4, drafts]
    assert any(sentence.startswith(f"{drafts} drafts cost ") for sentence in answers(found))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"context": 300_000}, "262,144"),
        ({"kv": "int3"}, "no KV type"),
        ({"state": "int8"}, "no dtype of states"),
        ({"utilization": 95.0}, "share of a card's memory"),
    ],
)
def test_what_cannot_be_asked_is_refused(full: Full, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(HybridError, match=words):
        plan(full, "compact", "RTX 4090", **asked)


def test_drafts_and_images_are_refused_of_a_checkpoint_without(full: Full, tmp_path: Any) -> None:
    with pytest.raises(HybridError, match="no vision tower"):
        plan(full, "compact", "L40S", images=True)
    whole = full("static-mse")
    bare = Checkpoint(whole.files, whole.config)
    bare.__dict__["loaded"] = {
        name: info for name, info in whole.loaded.items() if not name.startswith("mtp.")
    }
    with pytest.raises(HybridError, match="no MTP head"):
        solve(bare, Question(card("L40S"), drafts=2))
    found = solve(bare, Question(card("L40S")))
    assert found.fit.drafts == 0
    assert any("no MTP head" in sentence for sentence in answers(found))


@pytest.mark.parametrize(
    ("text", "value"), [("1008GB/s", 1008e9), ("3.35 TB/s", 3.35e12), ("864 gbps", 864e9)]
)
def test_bandwidths_are_read(text: str, value: float) -> None:
    assert read_bandwidth(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["1008", "0GB/s", "fast", "9e9GB/s", "-5GB/s"])
def test_what_is_no_bandwidth_is_refused(text: str) -> None:
    with pytest.raises(HybridError, match="no bandwidth"):
        read_bandwidth(text)


@pytest.mark.parametrize("text", ["80,60", "", "0.5,0.6", "a", "0.5;0.4", "nan"])
def test_what_is_no_acceptance_is_refused(text: str) -> None:
    with pytest.raises(HybridError, match="list of shares"):
        read_acceptance(text)


def test_layouts_of_more_kv_types(full: Full) -> None:
    """256 values a head, and a scale in FP32 for each of K and V."""
    sizes = {
        kv: cache_layout(full("compact"), kv_dtype=kv).token_bytes for kv in ("int8_per_token_head", "fp8")
    }
    assert sizes == {"int8_per_token_head": 2 * 4 * 260, "fp8": 2 * 4 * 256}
    assert cache_layout(full("compact"), kv_dtype="int4_per_token_head").token_bytes == 2 * 4 * 132
