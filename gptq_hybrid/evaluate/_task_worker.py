"""Run one checkpoint through lm-eval in its own process, because an engine frees its memory only at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Resamples for lm-eval's own errors of metrics that are no means, such as perplexities.
_BOOTSTRAP = 1000
# vLLM reserves memory for the longest request: the 27B's 262,144 tokens do not fit 24 GB.
_VLLM = {"dtype": "auto", "max_model_len": 8192, "limit_mm_per_prompt": {"image": 0, "video": 0}}

Outcome = dict[str, Any]


def run_tasks(job: Mapping[str, Any]) -> Outcome:
    """Run tasks and return ``{"rows"}``, lm-eval's results; or ``{"error"}``.

    Args:
        job: ``checkpoint`` (path), ``quantized``, ``backend`` (``hf`` or ``vllm``), ``device``, ``tasks``,
            ``limit``, ``include_path``, ``chat`` (apply the chat template), ``arguments`` (for lm-eval's model).

    Returns:
        Rows of ``task``, ``metric``, ``filter``, ``value``, ``stderr``, ``documents``, ``higher_is_better``, and
        ``samples``: the metric by document, if its value is their mean.
    """
    try:
        return {"rows": extract_rows(_evaluate(job))}
    except Exception as error:  # noqa: BLE001 - not every library's exceptions can be sent between processes
        return {"error": f"{type(error).__name__}: {error}"}


def _evaluate(job: Mapping[str, Any]) -> Mapping[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    model, arguments = _model(job)
    results = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=list(job["tasks"]),
        limit=job["limit"],
        device=job["device"] if job["backend"] == "hf" else None,
        batch_size=None if not isinstance(model, str) else _batch_size(job),
        apply_chat_template=bool(job["chat"]),
        bootstrap_iters=_BOOTSTRAP,
        log_samples=True,
        task_manager=TaskManager(include_path=job["include_path"]),
    )
    if results is None:
        raise RuntimeError("lm-eval returned no results")
    return dict(results)


def _model(job: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    path, extra = str(job["checkpoint"]), dict(job["arguments"])
    extra.pop("batch_size", None)
    if job["backend"] == "vllm":
        return "vllm", {"pretrained": path, **_VLLM, **extra}
    if not job["quantized"]:
        return "hf", {"pretrained": path, "dtype": "auto", **extra}
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    import gptq_hybrid

    gptq_hybrid.register()
    from gptqmodel import GPTQModel

    loaded = GPTQModel.load(path, device=job["device"])
    return HFLM(
        pretrained=loaded.model,
        tokenizer=AutoTokenizer.from_pretrained(path),
        backend="causal",
        batch_size=_batch_size(job),
        **extra,
    ), {}


def _batch_size(job: Mapping[str, Any]) -> int | str:
    batch_size = job["arguments"].get("batch_size")
    if batch_size is not None:
        return str(batch_size)
    return 4 if job["device"] == "cpu" and job["backend"] == "hf" else "auto"


def extract_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make rows as :func:`run_tasks` returns them from the results of ``simple_evaluate``."""
    rows = []
    for task, figures in results["results"].items():
        leaves = sorted(_leaves(task, results.get("group_subtasks") or {}))
        documents = sum(int(results["n-samples"][leaf]["effective"]) for leaf in leaves)
        for key, value in figures.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = figures.get(f"{metric}_stderr,{filter_name}")
            samples = _samples(results, leaves, metric, filter_name)
            mean = sum(samples.values()) / len(samples) if samples else None
            better = (results.get("higher_is_better", {}).get(task) or {}).get(metric)
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": filter_name,
                    "value": float(value),
                    "stderr": float(stderr) if _is_number(stderr) else None,
                    "documents": documents,
                    "higher_is_better": better,
                    # A median or a perplexity is no mean over documents, so nothing can be paired.
                    "samples": samples if mean is not None and abs(mean - float(value)) < 1e-6 else {},
                }
            )
    return rows


def _leaves(task: str, groups: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tasks of a group and of its groups; for a task, the task itself."""
    if not groups.get(task):
        yield task
        return
    for inner in groups[task]:
        yield from _leaves(inner, groups)


def _samples(
    results: Mapping[str, Any], leaves: list[str], metric: str, filter_name: str
) -> dict[str, float]:
    values: dict[str, float] = {}
    for leaf in leaves:
        for sample in results.get("samples", {}).get(leaf, ()):
            if sample.get("filter") == filter_name and _is_number(sample.get(metric)):
                values[f"{leaf}/{sample['doc_id']}/{sample.get('doc_hash', '')}"] = float(sample[metric])
    return values


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | bytes) and value is not None and float(value) == float(value)
    except (TypeError, ValueError):
        return False


def absolute_path(folder: Path | None) -> str | None:
    """Return a path as lm-eval takes it."""
    return None if folder is None else str(folder.resolve())
