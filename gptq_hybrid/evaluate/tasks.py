"""Accuracy on tasks through lm-eval: each checkpoint's, and paired differences where it logs samples."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from gptq_hybrid.checkpoint import Checkpoint, read_json_object
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import need

from ._task_worker import run_tasks, within
from .bootstrap import LEVEL, Estimate
from .compare import sign_flip
from .inputs import device_of, labels_of, name_of
from .states import state_key

BACKENDS = ("auto", "hf", "vllm")
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What to run.

    Attributes:
        reference, quantized: as in ``EvalRequest``.
        tasks: lm-eval's names of tasks or groups.
        limit: most documents of each task.
        include_path: folder of further tasks (YAML).
        backend: ``hf``, ``vllm``, or ``auto``: vLLM where it is installed and there is a GPU.
        chat: whether prompts go through the chat template.
        arguments: of lm-eval's model class, such as ``{"tensor_parallel_size": 2}``; ``batch_size`` too.
        work: folder where the results of each checkpoint are kept, so that a run that was cut off goes on.
    """

    reference: Path
    quantized: tuple[Path, ...]
    tasks: tuple[str, ...]
    limit: int | None = None
    include_path: Path | None = None
    backend: str = "auto"
    device: str | None = None
    chat: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    work: Path | None = None


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task. ``filter`` is lm-eval's: how the answer is found in what the model wrote."""

    checkpoint: str
    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    documents: int


@dataclass(frozen=True, slots=True)
class TaskDifference:
    """Metric of ``a`` less that of ``b`` on the same documents: mean, its paired t interval (95 %), and the
    two-sided p-value of the sign-flip test, which for right and wrong answers is McNemar's exact test (of 9,999
    random signs, where more than 14 answers differ). ``differing``: documents on which the two differ.
    """

    a: str
    b: str
    task: str
    metric: str
    filter: str
    documents: int
    differing: int
    difference: Estimate
    p: float


@dataclass(frozen=True, slots=True)
class TaskResults:
    """Accuracy on tasks, the reference first. ``settings``: what lm-eval was asked for, and its version."""

    scores: tuple[TaskScore, ...]
    differences: tuple[TaskDifference, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def check_tasks(request: TaskRequest) -> str:
    """Make sure, before anything long starts, that lm-eval is there and knows the tasks; returns the backend.

    Raises:
        HybridError: it is not installed, or does not know one of them.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise HybridError(
            "tasks are run by lm-eval, which is not installed",
            remedy="Run: pip install 'lm-eval[hf]' (beside vLLM: pip install 'lm-eval')",
        )
    if request.backend not in BACKENDS:
        raise HybridError(
            f"backend {request.backend!r} is not known", remedy=f"One of: {', '.join(BACKENDS)}."
        )
    if request.include_path is not None and not request.include_path.is_dir():
        raise HybridError(
            f"{request.include_path} is no folder of tasks", remedy="Give a folder of YAML files."
        )
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=within(request.include_path))
    unknown = [task for task in request.tasks if not manager.match_tasks([task])]
    if unknown:
        raise HybridError(
            f"lm-eval {version('lm-eval')} has no task {', '.join(map(repr, unknown))}",
            remedy="See: lm-eval ls tasks; tasks of your own: --tasks-path FOLDER",
        )
    device = device_of(request.device)
    if request.backend == "auto":
        return "vllm" if device.type == "cuda" and importlib.util.find_spec("vllm") else "hf"
    return request.backend


def evaluate_tasks(request: TaskRequest, *, on_progress: OnProgress | None = None) -> TaskResults:
    """Run the tasks on every checkpoint, each in a process of its own.

    ``on_progress(what, done, total)`` is called as checkpoints finish.

    Raises:
        HybridError: see :func:`check_tasks`; or lm-eval failed.
    """
    need("scipy")
    backend = check_tasks(request)
    labels = {name_of(request.reference): request.reference}
    for label, path in labels_of(request.quantized).items():
        labels[f"{label} (quantized)" if label in labels else label] = path
    settings = {
        "lm_eval": version("lm-eval"),
        "backend": backend,
        "device": str(device_of(request.device)),
        "tasks": list(request.tasks),
        "limit": request.limit,
        "chat": request.chat,
        "arguments": request.arguments,
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for label, path in labels.items():
        if on_progress is not None:
            on_progress("tasks", len(rows), len(labels))
        rows[label] = _of_checkpoint(request, label, path, backend, settings)
    if on_progress is not None:
        on_progress("tasks", len(rows), len(labels))
    scores = tuple(
        TaskScore(label, *(row[k] for k in ("task", "metric", "filter", "value", "stderr", "documents")))
        for label, found in rows.items()
        for row in found
    )
    return TaskResults(scores, paired_differences(rows), settings)


def paired_differences(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[TaskDifference, ...]:
    """Every pair of checkpoints, the later one as ``a``; rows as ``run_tasks`` returns them."""
    found = []
    for b, a in combinations(rows, 2):
        others = {_key(row): row["samples"] for row in rows[b]}
        for row in rows[a]:
            mine, theirs = row["samples"], others.get(_key(row), {})
            # Of different documents, nothing is paired.
            if mine and mine.keys() == theirs.keys():
                deltas = np.array([mine[k] - theirs[k] for k in sorted(mine)], dtype=np.float64)
                found.append(_difference((a, b), row, deltas))
    return tuple(found)


def _difference(names: tuple[str, str], row: Mapping[str, Any], deltas: Any) -> TaskDifference:
    mean, count = float(deltas.mean()), len(deltas)
    low = high = None
    # Where all documents differ alike, mostly not at all, their spread says nothing of others.
    if count > 1 and deltas.std() > 0:
        quantile = float(need("scipy.stats").t.ppf((1 + LEVEL) / 2, count - 1))
        half = quantile * float(deltas.std(ddof=1)) / count**0.5
        low, high = mean - half, mean + half
    # Documents on which both agree have no sign to flip.
    differing = deltas[deltas != 0]
    p = float(sign_flip(differing[:, None], np.random.default_rng(0))[0]) if len(differing) else 1.0
    return TaskDifference(*names, *_key(row), count, len(differing), Estimate(mean, low, high), p)


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["task"], row["metric"], row["filter"]


def _of_checkpoint(
    request: TaskRequest, label: str, path: Path, backend: str, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    checkpoint = Checkpoint.open(path)
    kept: Path | None = None
    if request.work is not None:
        # Tokenizer and chat template decide answers as weights do.
        tasks = {**settings, "definitions": _digest(request.include_path), "small_files": _digest(path)}
        kept = request.work / f"tasks-{state_key(checkpoint, tasks)[:24]}.json"
        if kept.is_file():
            return list(read_json_object(kept)["rows"])
    job = {
        "checkpoint": str(path),
        "quantized": checkpoint.quantization_config is not None,
        "backend": backend,
        "device": settings["device"],
        "tasks": request.tasks,
        "limit": request.limit,
        "include_path": within(request.include_path),
        "chat": request.chat,
        "arguments": request.arguments,
    }
    # Started anew, not forked: a process that has used a GPU cannot be forked.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            outcome = pool.submit(run_tasks, job).result()
        except BrokenProcessPool as error:
            outcome = {"error": f"its process ended ({error})"}
    if "error" in outcome:
        raise HybridError(
            f"lm-eval ({backend}) failed on {label}: {outcome['error']}",
            remedy="What it printed is in the log. Memory: --tasks-args batch_size=1, or max_model_len with vLLM.",
        )
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(kept, {"rows": outcome["rows"]})
    return list(outcome["rows"])


def _digest(folder: Path | None) -> str:
    """SHA-256 of the files in ``folder``, weights apart: task definitions and their data, or a tokenizer."""
    digest = hashlib.sha256()
    if folder is None:
        return digest.hexdigest()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix != ".safetensors":
            digest.update(json.dumps(str(file.relative_to(folder))).encode() + file.read_bytes())
    return digest.hexdigest()
