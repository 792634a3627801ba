"""Accuracy on tasks through lm-eval: of each checkpoint, and paired differences where lm-eval logs samples."""

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
from gptq_hybrid.common.paths import keep_paths

from ._task_worker import absolute_path, run_tasks
from .bootstrap import LEVEL, Estimate
from .compare import sign_flip
from .inputs import checkpoint_name, choose_device, label_checkpoints
from .states import state_key

BACKENDS = ("auto", "hf", "vllm")
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Which tasks to run, and how.

    Attributes:
        reference: the BF16 original, as in ``EvalRequest``.
        quantized: checkpoints of it.
        tasks: lm-eval's names of tasks or groups.
        limit: most documents of each task.
        include_path: folder of further tasks (YAML).
        backend: ``hf``, ``vllm``, or ``auto``: vLLM if it is installed and there is a GPU.
        chat: whether prompts go through the chat template.
        arguments: for lm-eval's model class, such as ``{"tensor_parallel_size": 2}``; also ``batch_size``.
        work: folder for the results of each checkpoint, so that an interrupted run continues.
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

    def __post_init__(self) -> None:
        keep_paths(self, "reference", "quantized", "include_path", "work")


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task. ``filter`` is lm-eval's name for how the answer is taken from the reply."""

    checkpoint: str
    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    documents: int


@dataclass(frozen=True, slots=True)
class TaskDifference:
    """Metric of ``a`` minus that of ``b`` on the same documents.

    Attributes:
        documents: how many there are.
        differing: documents on which the two differ.
        difference: the mean, with its paired t interval (95 %).
        p: two-sided p-value of the sign-flip test. For right and wrong answers that is McNemar's exact test; if
            more than 14 answers differ, it uses 9,999 random signs.
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
    """Accuracy on tasks, the reference first. ``settings`` are lm-eval's, with its version."""

    scores: tuple[TaskScore, ...]
    differences: tuple[TaskDifference, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def check_tasks(request: TaskRequest) -> str:
    """Make sure, before anything long starts, that lm-eval is installed and knows the tasks; return the backend.

    Raises:
        HybridError: lm-eval is not installed or does not know a task, or the request has another fault.
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

    manager = TaskManager(include_path=absolute_path(request.include_path))
    unknown = [task for task in request.tasks if not manager.match_tasks([task])]
    if unknown:
        raise HybridError(
            f"lm-eval {version('lm-eval')} has no task {', '.join(map(repr, unknown))}",
            remedy="See: lm-eval ls tasks. For tasks of your own: --tasks-path FOLDER",
        )
    device = choose_device(request.device)
    if request.backend == "auto":
        return "vllm" if device.type == "cuda" and importlib.util.find_spec("vllm") else "hf"
    return request.backend


def evaluate_tasks(request: TaskRequest, *, on_progress: OnProgress | None = None) -> TaskResults:
    """Run the tasks on every checkpoint, each in its own process.

    ``on_progress(what, done, total)`` is called as checkpoints finish.

    Raises:
        HybridError: see :func:`check_tasks`; or lm-eval failed.
    """
    need("scipy")
    backend = check_tasks(request)
    labels = {checkpoint_name(request.reference): request.reference}
    for label, path in label_checkpoints(request.quantized).items():
        labels[f"{label} (quantized)" if label in labels else label] = path
    settings = {
        "lm_eval": version("lm-eval"),
        "backend": backend,
        "device": str(choose_device(request.device)),
        "tasks": list(request.tasks),
        "limit": request.limit,
        "chat": request.chat,
        "arguments": request.arguments,
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for label, path in labels.items():
        if on_progress is not None:
            on_progress("tasks", len(rows), len(labels))
        rows[label] = _run_checkpoint(request, label, path, backend, settings)
    if on_progress is not None:
        on_progress("tasks", len(rows), len(labels))
    scores = tuple(
        TaskScore(label, *(row[k] for k in ("task", "metric", "filter", "value", "stderr", "documents")))
        for label, checkpoint_rows in rows.items()
        for row in checkpoint_rows
    )
    return TaskResults(scores, paired_differences(rows), settings)


def paired_differences(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[TaskDifference, ...]:
    """Compare every pair of checkpoints, the later one as ``a``; rows are those of ``run_tasks``."""
    differences = []
    for b, a in combinations(rows, 2):
        others = {_key(row): row["samples"] for row in rows[b]}
        for row in rows[a]:
            own, other = row["samples"], others.get(_key(row), {})
            # Only the same documents can be paired.
            if own and own.keys() == other.keys():
                deltas = np.array([own[k] - other[k] for k in sorted(own)], dtype=np.float64)
                differences.append(_difference((a, b), row, deltas))
    return tuple(differences)


def _difference(names: tuple[str, str], row: Mapping[str, Any], deltas: Any) -> TaskDifference:
    mean, count = float(deltas.mean()), len(deltas)
    low = high = None
    # If all documents differ by the same amount (mostly zero), their spread says nothing about other documents.
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


def _run_checkpoint(
    request: TaskRequest, label: str, path: Path, backend: str, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    checkpoint = Checkpoint.open(path)
    results: Path | None = None
    if request.work is not None:
        # Tokenizer and chat template affect answers as weights do.
        tasks = {**settings, "definitions": _digest(request.include_path), "small_files": _digest(path)}
        results = request.work / f"tasks-{state_key(checkpoint, tasks)[:24]}.json"
        if results.is_file():
            return list(read_json_object(results)["rows"])
    job = {
        "checkpoint": str(path),
        "quantized": checkpoint.quantization_config is not None,
        "backend": backend,
        "device": settings["device"],
        "tasks": request.tasks,
        "limit": request.limit,
        "include_path": absolute_path(request.include_path),
        "chat": request.chat,
        "arguments": request.arguments,
    }
    # Spawned: a process that has used a GPU cannot be forked.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            outcome = pool.submit(run_tasks, job).result()
        except BrokenProcessPool as error:
            outcome = {"error": f"its process ended ({error})"}
    if "error" in outcome:
        raise HybridError(
            f"lm-eval ({backend}) failed on {label}: {outcome['error']}",
            remedy="Its output is in the log. Less memory: --tasks-args batch_size=1, or max_model_len with vLLM.",
        )
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(results, {"rows": outcome["rows"]})
    return list(outcome["rows"])


def _digest(folder: Path | None) -> str:
    """Hash the files in ``folder`` other than weights, such as task definitions or a tokenizer: SHA-256."""
    digest = hashlib.sha256()
    if folder is None:
        return digest.hexdigest()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix != ".safetensors":
            digest.update(json.dumps(str(file.relative_to(folder))).encode() + file.read_bytes())
    return digest.hexdigest()
