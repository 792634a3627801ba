"""A server that answers as vLLM's would: the pages of a dictionary, over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.json_pages import JsonPages, served

RECORDED = Path(__file__).parent / "recorded"
VERSIONS = ("0.26.0", "0.29.0", "0.31.0", "0.33.0")


def metrics(version: str = "0.33.0", **changes: float) -> str:
    """Text that vLLM's own PrometheusStatLogger of ``version`` made, with ``name=value`` counts changed.

    It has 400 drafts of two tokens, 300 accepted at the first position and 200 at the second, three preemptions,
    and 32,000 of 100,000 prompt tokens found in the prefix cache.
    """
    lines = (RECORDED / f"vllm-{version}.prom").read_text().splitlines()
    for name, value in changes.items():
        hits = [at for at, line in enumerate(lines) if line.startswith(f"vllm:{name}{{")]
        assert hits, name
        for at in hits:
            lines[at] = f"{lines[at].rpartition(' ')[0]} {value}"
    return "\n".join(lines) + "\n"


def plugin_metrics(*paths: tuple[str, str, str], **info: str) -> str:
    """What the plugin adds to that text, made by the plugin itself."""
    from prometheus_client import CollectorRegistry, generate_latest

    from vllm_qwen36_plugin.report import Note
    from vllm_qwen36_plugin.report.publish import NotesCollector

    collector = NotesCollector()
    collector.info = {"version": "0.1.0", "device": "cuda", "options": "{}", **info}
    collector.notes = lambda: [Note(*path) for path in paths]  # type: ignore[method-assign]
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def models(name: str = "qwen", root: str = "Qwen3.6-27B-W4A16-G128") -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "root": root, "max_model_len": 200000}]}


@contextmanager
def serving(pages: Mapping[str, Any]) -> Iterator[str]:
    """Serve pages: text, JSON, or a status; yields the address."""

    class Handler(JsonPages):
        def get(self) -> None:
            page = pages.get(self.path, 404)
            if callable(page):
                page = page(self.headers)
            self.send("", page) if isinstance(page, int) else self.send(page)

    with served(Handler) as url:
        yield url
