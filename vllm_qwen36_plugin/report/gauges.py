"""The plugin's two metrics where Prometheus has a folder for all processes: it shows gauges, and no collectors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from prometheus_client import Gauge

from gptq_hybrid.live.names import INFO, INFO_LABELS, PATH, PATH_LABELS

from .notes import Note

INFO_HELP = "vllm-qwen36-plugin is in this server."
PATH_HELP = "What vllm-qwen36-plugin does in this server, and why."


def set_info(info: Mapping[str, str]) -> None:
    """Publish that the plugin is there."""
    _gauge(INFO, INFO_HELP, INFO_LABELS).labels(*(info.get(label, "") for label in INFO_LABELS)).set(1)


def set_path(made: Note) -> None:
    """Publish one note."""
    _gauge(PATH, PATH_HELP, PATH_LABELS).labels(made.path, made.state, made.detail).set(1)


@cache
def _gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
    return Gauge(name, text, labelnames=labels, multiprocess_mode="mostrecent")
