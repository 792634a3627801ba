"""Figures of ``qwen36 eval`` that join a receipt; read from its JSON alone, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.small_files import read_json

_SCHEMA = 1
_FIGURES = ("kld_mean", "top1", "perplexity_ratio")


def read_quality(path: Path, name: str) -> dict[str, Any]:
    """Read what an evaluation says of one checkpoint.

    Args:
        path: ``evaluation.json``, or its folder.
        name: of the checkpoint; an evaluation of a single one is taken whatever its name.

    Returns:
        ``reference``, ``name``, ``environment``, ``overall`` and ``domains`` with figures as
        ``{value, low, high}``, and ``tasks``: objects with ``task``, ``metric``, ``value`` and ``stderr``.

    Raises:
        HybridError: the file is no evaluation, or has none of this checkpoint.
    """
    file = path / "evaluation.json" if path.is_dir() else path
    content = read_json(file)
    remedy = "Give the evaluation.json that qwen36 eval wrote."
    if not isinstance(content, Mapping) or "checkpoints" not in content or "reference" not in content:
        raise HybridError(f"{file} is no evaluation", remedy=remedy)
    if content.get("schema") != _SCHEMA:
        raise HybridError(f"{file} has schema {content.get('schema')!r}; {_SCHEMA} is read", remedy=remedy)
    try:
        summaries = {summary["name"]: summary for summary in content["checkpoints"]}
        scores = (content.get("tasks") or {}).get("scores") or []
        names = [*summaries, *(s["checkpoint"] for s in scores if s["checkpoint"] not in summaries)]
        others = [each for each in names if each != content["reference"]]
        if name not in names:
            if len(set(others)) != 1:
                raise HybridError(
                    f"{file} says nothing of {name}: it is of {', '.join(dict.fromkeys(others)) or 'nothing'}",
                    remedy="Give an evaluation of this checkpoint.",
                )
            name = others[0]
        summary = summaries.get(name)
        return {
            "reference": content["reference"],
            "name": name,
            "environment": dict(content.get("environment") or {}),
            "overall": None if summary is None else _figures(summary["overall"]),
            "domains": {} if summary is None else {d["domain"]: _figures(d) for d in summary["domains"]},
            "tasks": [_task(score) for score in scores if score["checkpoint"] == name],
            "task_settings": _settings((content.get("tasks") or {}).get("settings") or {}),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise HybridError(f"{file} is damaged: {error!r}", remedy=remedy) from error


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {name: summary[name] for name in _FIGURES}
    if (drafts := summary.get("acceptance")) is not None:
        figures["acceptance_length"] = drafts["length"]
    return {**figures, "tokens": summary["tokens"], "documents": summary["documents"]}


def _task(score: Mapping[str, Any]) -> dict[str, Any]:
    return {key: score.get(key) for key in ("task", "metric", "filter", "value", "stderr", "documents")}


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in ("limit", "chat", "backend", "lm_eval") if key in settings}
