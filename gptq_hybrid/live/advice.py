"""What is wrong with a running server, or could be better, and what to change."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor import Finding, Severity, check

from .reading import Reading

# Too few drafts to judge by.
_FEW_DRAFTS = 50
_SOME_DRAFTS = 200
# Every draft accepted is usual for a constructed model, and for logits that are NaN.
_MANY_DRAFTS = 1000
# Trained heads reach 0.76 to 0.91 at the first position and 0.39 to 0.62 at the third, by task and context
# (published readings of 3.6 and 3.8 at 27B).
_LOW_FIRST = 0.5
_LOW_LAST = 0.3
# From about so many requests at once, drafts cost more than they bring (an 8-agent load on an RTX 4090 took 2.3
# times as long with two drafts).
_CROWD = 8
_OFF = "off"


def advise(reading: Reading) -> list[Finding]:
    """Judge one reading: errors first, then what could be better."""
    findings = [*_counters(reading), *_plugin(reading), *_drafts(reading), *_cache(reading)]
    return sorted(findings, key=lambda finding: finding.severity is not Severity.ERROR)


def _warning(rule: str, message: str, remedy: str) -> Finding:
    return Finding(rule, Severity.WARNING, message, remedy)


def _counters(reading: Reading) -> Iterator[Finding]:
    if not reading.counts:
        yield _warning(
            "no-counters",
            "its /metrics has none of vLLM's counters",
            "Start vllm serve without --disable-log-stats; with it nothing can be said of drafts and cache.",
        )
    if reading.models_problem:
        yield _warning(
            "no-models", f"/v1/models tells nothing: {reading.models_problem}", "Give the key with --api-key."
        )
    if reading.counters.corrupted:
        yield Finding(
            "nan-logits",
            Severity.ERROR,
            f"{reading.counters.corrupted} answers had logits that are NaN",
            f"Check the checkpoint: qwen36 check {_name(reading)}; and start with "
            '--additional-config \'{"qwen36": {"prefill": "off", "draft": "bf16"}}\' to tell kernels from weights.',
        )


def _plugin(reading: Reading) -> Iterator[Finding]:
    if reading.plugin is None:
        yield _warning(
            "no-plugin",
            "vllm-qwen36-plugin is not in this server, or is a version that does not show itself",
            "Install it into the environment of that vllm (pip install .), leave VLLM_PLUGINS unset or name qwen36 "
            "in it, and start again. `qwen36 env`, run there, says what it would load.",
        )
        return
    for state in reading.paths:
        if state.state == _OFF:
            yield _warning(
                "path-off",
                f"{state.path} is off: {state.detail or 'no reason was given'}",
                "If you did not ask for that, report it: run `qwen36 env` where vLLM runs, and paste it.",
            )
    drafts = reading.path("drafts")
    if drafts is not None and drafts.state == "stock":
        yield _warning(
            "drafts-stock",
            f"drafts stay as vLLM makes them: {drafts.detail}",
            "They are right, and cost more. See the table of switches in README.md.",
        )


def _drafts(reading: Reading) -> Iterator[Finding]:
    counters = reading.counters
    name = _name(reading)
    if not reading.counts:
        return
    if not reading.speculates:
        yield _warning(
            "no-drafts",
            "it drafts nothing: it was started without --speculative-config",
            "If the checkpoint has an MTP head (`qwen36 check "
            f'{name}` says so), add --speculative-config \'{{"method": "mtp", "num_speculative_tokens": 2}}\'.',
        )
        return
    if counters.proposed < _FEW_DRAFTS:
        return
    if counters.accepted == 0:
        yield _dead_head(reading)
        return
    if counters.accepted == counters.proposed >= _MANY_DRAFTS:
        yield _warning(
            "all-accepted",
            f"all {counters.accepted:,} drafted tokens were accepted, which trained models do not reach",
            "Look at a reply. Logits that are NaN look like this, and so does a model made for tests.",
        )
    rates = counters.position_rates
    if counters.drafts >= _SOME_DRAFTS and rates and rates[0] < _LOW_FIRST:
        yield _warning(
            "low-acceptance",
            f"{rates[0]:.0%} of the first drafts are accepted, where trained heads reach 76 to 91 %",
            "Usual reasons: random prompts, no plugin on vLLM's CPU build, a high temperature, a language that "
            "the list of `draft_vocab` was not counted from, a head of another model. Measure your own prompts: "
            f"qwen36 tune drafts {name} PROMPTS.jsonl",
        )
    elif counters.drafts >= _SOME_DRAFTS and len(rates) > 1 and rates[-1] < _LOW_LAST:
        yield _warning(
            "late-drafts",
            f"{rates[-1]:.0%} of the drafts at position {len(rates)} are accepted",
            f"Fewer drafts may be faster: qwen36 tune drafts {name} PROMPTS.jsonl measures it.",
        )
    if reading.running >= _CROWD:
        yield _warning(
            "drafts-in-a-crowd",
            f"{reading.running} requests run at once, where drafts often cost more than they bring",
            f"Measure at your load: qwen36 tune drafts {name} PROMPTS.jsonl --batches {reading.running}",
        )


def _dead_head(reading: Reading) -> Finding:
    what = f"none of {reading.counters.proposed:,} drafted tokens was accepted: the MTP head is dead"
    known = _fault_of_the_head(reading)
    head = reading.path("MTP head")
    if known is not None:
        why, remedy = f", as {known.message}", known.remedy
    elif head is not None and head.state == "verified":
        why = ", though every tensor of it arrived"
        remedy = (
            f"See whether it is this model's: qwen36 check {_name(reading)}; a head of another model has the same "
            "shapes. With a `draft_vocab`, see that the list is of this tokenizer."
        )
    else:
        unchecked = head is not None and head.state == "unchecked"
        why = f", and {head.detail}" if head is not None and unchecked else ""
        remedy = (
            (
                "Start without `mtp_check: off`, and the start says what is missing; or run: "
                if unchecked
                else "Run: "
            )
            + f"qwen36 check {_name(reading)}; a lost head comes back with: "
            f"qwen36 repair {_name(reading)} --mtp-from OWNER/ORIGINAL"
        )
    return Finding("dead-head", Severity.ERROR, what + why, remedy)


def _fault_of_the_head(reading: Reading) -> Finding | None:
    """Return what `check` finds in the checkpoint, if the server runs on this machine and its folder is here."""
    if reading.root is None or not _loopback(reading.url) or not Path(reading.root).is_dir():
        return None
    try:
        report = check(reading.root, vllm=reading.vllm, plugin=reading.plugin is not None)
    except HybridError:
        return None
    heads = [f for f in report.errors if "mtp" in f"{f.rule} {f.tensor} {f.message}".lower()]
    return next(iter(heads or report.errors), None)


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _cache(reading: Reading) -> Iterator[Finding]:
    counters = reading.counters
    if reading.prefix_caching is False and reading.on_cpu is False:
        yield _warning(
            "no-prefix-cache",
            "prefixes are not cached, so a conversation is read anew at each turn",
            "Start without --no-enable-prefix-caching.",
        )
    if counters.preemptions:
        yield _warning(
            "preemptions",
            f"{counters.preemptions} times a running request was put off and read again, as the cache was full",
            "Give fewer --max-num-seqs or drafts, a shorter --max-model-len, or --kv-cache-dtype fp8; "
            f"qwen36 check {_name(reading)} --gpu CARD computes them.",
        )


def _name(reading: Reading) -> str:
    return reading.root or reading.model or "CHECKPOINT"
