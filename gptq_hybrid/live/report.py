"""A reading for people and for programs: a sentence, a table of facts, JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .reading import Reading


def summary(reading: Reading) -> str:
    """Say in one sentence what serves what, with or without the plugin, and how drafts do."""
    with_plugin = (
        "without vllm-qwen36-plugin"
        if reading.plugin is None
        else f"with vllm-qwen36-plugin {reading.plugin.get('version', '')}".rstrip()
    )
    what = reading.model or "an unnamed model"
    start = f"{reading.url} serves {what} on vLLM {reading.vllm or '(no version)'} {with_plugin}"
    counted = reading.counters.acceptance
    if not reading.speculates:
        return f"{start}; it makes no drafts."
    if not counted.proposed:
        return f"{start}; no draft was made yet."
    return (
        f"{start}; {counted.accepted:,} of {counted.proposed:,} drafted tokens were accepted "
        f"({counted.rate:.0%}), {counted.length:.2f} tokens a step."
    )


def facts(reading: Reading) -> list[tuple[str, str]]:
    """Return pairs of what and its value, for a table."""
    rates = reading.counters.position_rates
    hits = reading.counters.hit_rate
    counters = reading.counters
    told = [
        ("requests", f"{counters.requests:,} done, {reading.running} running, {reading.waiting} waiting"),
        ("tokens", f"{counters.prompt_tokens:,} of prompts, {counters.generation_tokens:,} generated"),
    ]
    if rates:
        each = ", ".join(f"{number}: {rate:.1%}" for number, rate in enumerate(rates, 1))
        told.append(("accepted by position", each))
    if reading.prefix_caching is False:
        told.append(("prefix cache", "off"))
    else:
        block = reading.number("block_size")
        unit = f"; a prefix counts in whole blocks of {block:,} tokens" if block and reading.hybrid else ""
        found = (
            "nothing was looked up yet" if hits is None else f"{hits:.1%} of prompt tokens were found in it"
        )
        told.append(("prefix cache", found + unit))
    used = f"{reading.cache_usage:.1%} in use"
    if size := reading.number("kv_cache_size_tokens"):
        told.append(("KV cache", f"{size:,} tokens ({reading.cache_config.get('cache_dtype')}), {used}"))
    elif reading.counts:
        told.append(("KV cache", used))
    if reading.max_model_len:
        told.append(("longest request", f"{reading.max_model_len:,} tokens"))
    if reading.plugin is not None:
        told.append(("options of the plugin", reading.plugin.get("options") or "{}"))
    told += [
        (state.path, f"{state.state}{f': {state.detail}' if state.detail else ''}") for state in reading.paths
    ]
    return told


def as_json(reading: Reading) -> dict[str, Any]:
    """For programs: everything but the findings."""
    counted = reading.counters
    return {
        "url": reading.url,
        "model": reading.model,
        "root": reading.root,
        "max_model_len": reading.max_model_len,
        "plugin_version": None if reading.plugin is None else reading.plugin.get("version"),
        "plugin_options": None if reading.plugin is None else reading.plugin.get("options"),
        "paths": [asdict(state) for state in reading.paths],
        "speculates": reading.speculates,
        "drafts": counted.drafts,
        "draft_tokens": counted.proposed,
        "accepted_tokens": counted.accepted,
        "acceptance_rate": counted.acceptance.rate if counted.proposed else None,
        "acceptance_length": counted.acceptance.length if counted.drafts else None,
        "acceptance_by_position": list(counted.position_rates),
        "prefix_caching": reading.prefix_caching,
        "prefix_cache_queries": counted.cache_queries,
        "prefix_cache_hits": counted.cache_hits,
        "prefix_cache_hit_rate": counted.hit_rate,
        "preemptions": counted.preemptions,
        "requests": counted.requests,
        "prompt_tokens": counted.prompt_tokens,
        "generation_tokens": counted.generation_tokens,
        "running": reading.running,
        "waiting": reading.waiting,
        "kv_cache_usage": reading.cache_usage,
        "cache_config": dict(reading.cache_config),
    }
