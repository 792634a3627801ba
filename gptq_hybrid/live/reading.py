"""What the numbers of a server mean: counters of ``/metrics``, added up over its engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.vllm_server import Acceptance

from .names import INFO, PATH
from .scrape import Scrape

_SPEC = "vllm:spec_decode_num_"


@dataclass(frozen=True, slots=True)
class Counters:
    """Totals since the server started; of two readings, what came between them.

    Attributes:
        drafts: verification steps.
        proposed, accepted: draft tokens.
        per_position: accepted draft tokens, by position in the draft.
        cache_queries, cache_hits: prompt tokens looked up in the prefix cache, and found there.
        preemptions: requests put off because the cache was full.
        prompt_tokens, generation_tokens: processed.
        requests: finished.
        corrupted: answers with NaN logits, where vLLM counts them.
    """

    drafts: int = 0
    proposed: int = 0
    accepted: int = 0
    per_position: tuple[int, ...] = ()
    cache_queries: int = 0
    cache_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    requests: int = 0
    corrupted: int = 0

    @property
    def acceptance(self) -> Acceptance:
        """The counts of drafts, with their rates."""
        return Acceptance(self.drafts, self.proposed, self.accepted, self.per_position)

    @property
    def position_rates(self) -> tuple[float, ...]:
        """Share of the drafts whose token at each position was accepted; empty without drafts."""
        return tuple(count / self.drafts for count in self.per_position) if self.drafts else ()

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens that the prefix cache had; None without any lookup."""
        return self.cache_hits / self.cache_queries if self.cache_queries else None

    def since(self, earlier: Counters) -> Counters:
        """Return what came after an earlier reading; all of it, if the server was started anew in between."""
        differences: dict[str, Any] = {}
        for spec in fields(self):
            now, before = getattr(self, spec.name), getattr(earlier, spec.name)
            if isinstance(now, tuple):
                before = (*before, *[0] * len(now))[: len(now)]
                differences[spec.name] = tuple(a - b for a, b in zip(now, before, strict=True))
                if min(differences[spec.name], default=0) < 0:
                    return self
            else:
                differences[spec.name] = now - before
                if now < before:
                    return self
        return Counters(**differences)


@dataclass(frozen=True, slots=True)
class PathState:
    """What the plugin says of one of its paths: ``state`` in a word, ``detail`` the reason or figures."""

    path: str
    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a running server.

    Attributes:
        url: of the server.
        model: the name that requests give; None if neither page told it.
        root: the checkpoint it was started with, as ``/v1/models`` gives it.
        max_model_len: tokens of the longest request, as ``/v1/models`` gives it.
        vllm: its version.
        plugin: labels of the plugin's own metric; None without the plugin.
        paths: what the plugin does there.
        speculates: whether vLLM counts drafts at all.
        counters: totals.
        running, waiting: requests at this moment.
        cache_usage: share of the KV cache in use.
        cache_config: vLLM's own names and values of its cache configuration.
        models_problem: why ``/v1/models`` could not be read.
        counts: whether there are any of vLLM's metrics.
    """

    url: str
    model: str | None = None
    root: str | None = None
    max_model_len: int | None = None
    vllm: str | None = None
    plugin: Mapping[str, str] | None = None
    paths: tuple[PathState, ...] = ()
    speculates: bool = False
    counters: Counters = field(default_factory=Counters)
    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    cache_config: Mapping[str, str] = field(default_factory=dict)
    models_problem: str | None = None
    counts: bool = True

    @property
    def on_cpu(self) -> bool | None:
        """Whether it runs on a CPU; None if the plugin is not there to tell."""
        return None if self.plugin is None else self.plugin.get("device") == "cpu"

    @property
    def hybrid(self) -> bool:
        """Whether the model has states beside keys and values, as this family does."""
        return self.plugin is not None or self._set("mamba_block_size") or self._set("mamba_page_size_padded")

    @property
    def prefix_caching(self) -> bool | None:
        """Whether prefixes are cached; None if vLLM does not say."""
        return {"True": True, "False": False}.get(self.cache_config.get("enable_prefix_caching", ""))

    def number(self, name: str) -> int | None:
        """Return a whole number of the cache configuration; None if it is absent."""
        value = self.cache_config.get(name, "")
        return int(value) if value.isdigit() else None

    def path(self, name: str) -> PathState | None:
        """Return what the plugin says of a path."""
        return next((state for state in self.paths if state.path == name), None)

    def _set(self, name: str) -> bool:
        return self.cache_config.get(name, "None") not in ("None", "")


def read(scraped: Scrape) -> Reading:
    """Make sense of what a server answered.

    Raises:
        HybridError: its ``/metrics`` cannot be parsed.
    """
    from prometheus_client.parser import text_string_to_metric_families

    totals: dict[str, float] = {}
    positions: dict[int, float] = {}
    labels: dict[str, Mapping[str, str]] = {}
    paths: list[PathState] = []
    model = None
    try:
        for family in text_string_to_metric_families(scraped.metrics):
            for sample in family.samples:
                if sample.name == PATH:
                    paths.append(PathState(*(sample.labels.get(k, "") for k in ("path", "state", "detail"))))
                elif sample.name == INFO or sample.name == "vllm:cache_config_info":
                    labels[sample.name] = sample.labels
                elif sample.name.startswith("vllm:") and not sample.name.endswith(("_created", "_bucket")):
                    model = model or sample.labels.get("model_name")
                    if sample.name == f"{_SPEC}accepted_tokens_per_pos_total":
                        at = int(sample.labels["position"])
                        positions[at] = positions.get(at, 0) + sample.value
                    else:
                        totals[sample.name] = totals.get(sample.name, 0) + sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise HybridError(f"{scraped.url}/metrics cannot be read: {error}") from error

    def count(*names: str) -> int:
        return int(next((totals[name] for name in names if name in totals), 0))

    first = scraped.models[0] if scraped.models else {}
    length = first.get("max_model_len")
    return Reading(
        url=scraped.url,
        model=str(first["id"]) if "id" in first else model,
        root=str(first["root"]) if first.get("root") else None,
        max_model_len=length if isinstance(length, int) else None,
        vllm=scraped.version or labels.get(INFO, {}).get("vllm") or None,
        plugin=labels.get(INFO),
        paths=tuple(paths),
        speculates=f"{_SPEC}drafts_total" in totals,
        counters=Counters(
            drafts=count(f"{_SPEC}drafts_total"),
            proposed=count(f"{_SPEC}draft_tokens_total"),
            accepted=count(f"{_SPEC}accepted_tokens_total"),
            per_position=tuple(int(positions[key]) for key in sorted(positions)),
            cache_queries=count("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
            cache_hits=count("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
            preemptions=count("vllm:num_preemptions_total"),
            prompt_tokens=count("vllm:prompt_tokens_total"),
            generation_tokens=count("vllm:generation_tokens_total"),
            requests=count("vllm:request_success_total"),
            corrupted=count("vllm:corrupted_requests_total"),
        ),
        running=count("vllm:num_requests_running"),
        waiting=count("vllm:num_requests_waiting"),
        cache_usage=totals.get("vllm:kv_cache_usage_perc", totals.get("vllm:gpu_cache_usage_perc", 0.0)),
        cache_config=labels.get("vllm:cache_config_info", {}),
        models_problem=scraped.models_problem,
        counts=bool(totals),
    )
