"""One checkpoint through lm-eval, in a process of its own: an engine gives its memory back only when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# lm-eval's own figures of metrics that are no means (perplexities) are resampled this often.
_BOOTSTRAP = 1000
# vLLM reserves memory for the longest request: all of a 27B's 262,144 tokens do not fit 24 GB.
_VLLM = {"dtype": "auto", "max_model_len": 8192, "limit_mm_per_prompt": {"image": 0, "video": 0}}

Outcome = dict[str, Any]


def run_tasks(job: Mapping[str, Any]) -> Outcome:
    """``{"error"}``, or ``{"rows"}``: what lm-eval found.

    Args:
        job: ``checkpoint`` (path), ``quantized``, ``backend`` (``hf`` or ``vllm``), ``device``, ``tasks``,
            ``limit``, ``include_path``, ``chat`` (apply the chat template), ``arguments`` (of lm-eval's model).

    Returns:
        Rows of ``task``, ``metric``, ``filter``, ``value``, ``stderr``, ``documents``, ``higher_is_better``, and
        ``samples``: the metric by document, where it is the mean of these.
    """
    try:
        return {"rows": rows_of(_evaluated(job))}
    except Exception as error:  # noqa: BLE001 - not every exception of every library survives the way back
        return {"error": f"{type(error).__name__}: {error}"}


def _evaluated(job: Mapping[str, Any]) -> Mapping[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    model, arguments = _model(job)
    found = lm_eval.simple_evaluate(
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
    if found is None:
        raise RuntimeError("lm-eval returned no results")
    return dict(found)


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
    given = job["arguments"].get("batch_size")
    if given is not None:
        return str(given)
    return 4 if job["device"] == "cpu" and job["backend"] == "hf" else "auto"


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows as :func:`run_tasks` returns them, from what ``simple_evaluate`` returned."""
    rows = []
    for task, figures in found["results"].items():
        leaves = sorted(_leaves(task, found.get("group_subtasks") or {}))
        documents = sum(int(found["n-samples"][leaf]["effective"]) for leaf in leaves)
        for key, value in figures.items():
            metric, comma, how = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = figures.get(f"{metric}_stderr,{how}")
            samples = _samples(found, leaves, metric, how)
            mean = sum(samples.values()) / len(samples) if samples else None
            better = (found.get("higher_is_better", {}).get(task) or {}).get(metric)
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": how,
                    "value": float(value),
                    "stderr": float(stderr) if _is_number(stderr) else None,
                    "documents": documents,
                    "higher_is_better": better,
                    # A median or a perplexity is no mean of its documents' values: nothing to pair.
                    "samples": samples if mean is not None and abs(mean - float(value)) < 1e-6 else {},
                }
            )
    return rows


def _leaves(task: str, groups: Mapping[str, Any]) -> Iterator[str]:
    """The tasks of a group, of its groups too; a task itself."""
    if not groups.get(task):
        yield task
        return
    for inner in groups[task]:
        yield from _leaves(inner, groups)


def _samples(found: Mapping[str, Any], leaves: list[str], metric: str, how: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for leaf in leaves:
        for sample in found.get("samples", {}).get(leaf, ()):
            if sample.get("filter") == how and _is_number(sample.get(metric)):
                values[f"{leaf}/{sample['doc_id']}/{sample.get('doc_hash', '')}"] = float(sample[metric])
    return values


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | bytes) and value is not None and float(value) == float(value)
    except (TypeError, ValueError):
        return False


def within(folder: Path | None) -> str | None:
    """A path as lm-eval takes it."""
    return None if folder is None else str(folder.resolve())
