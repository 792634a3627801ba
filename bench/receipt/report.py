"""The table of this room's page: what servers of the 27B's shapes do on an H200, and the ratios of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.pages import Page
from bench.results import Json
from bench.tables import table

HERE = Path(__file__).parent
_FIGURES = {
    "kv_cache_tokens": "KV cache, tokens",
    "tokens_per_second_batch_1": "one request: tokens/s",
    "tpot_ms_batch_1": "one request: TPOT, ms",
    "ttft_ms_batch_1": "one request: TTFT, ms",
    "tokens_per_second_batch_16": "16 requests: tokens/s",
    "tpot_ms_batch_16": "16 requests: TPOT, ms",
    "ttft_ms_batch_16": "16 requests: TTFT, ms",
}


def _shown(figure: Any) -> str:
    return f"{figure:,}" if isinstance(figure, int) else "{value:,} [{low:,}, {high:,}]".format(**figure)


def reference_table(result: Json) -> str:
    """A row a figure, a column a checkpoint, stock or with the plugin."""
    columns = result["columns"]
    rows = [[name, *(_shown(column["figures"][key]) for column in columns)] for key, name in _FIGURES.items()]
    titles = ["", *(f"{column['checkpoint']}, {column['variant']}" for column in columns)]
    return table(titles, rows, "One H200 each, vLLM 0.33.0, torch 2.11.0; in brackets 95 % intervals")


PAGE = Page(HERE / "README.md", {"reference": (reference_table, HERE / "h200" / "reference.json")})
