"""``.eval_results/*.yaml``: figures in the form that the Hugging Face hub reads from a model's repository.

The hub shows an entry whose data set is registered there as a benchmark
(https://huggingface.co/docs/hub/eval-results). Accuracy on tasks has such data sets. For speed there is none, so
those figures become entries only of a data set that the user names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptq_hybrid.common.atomic import write_text_atomic
from gptq_hybrid.common.errors import HybridError

from .record import Receipt
from .summary import acceptance_length, median, over_repeats

FOLDER = ".eval_results"
# lm-eval's name of a task, and what the hub calls it: data set and task, as in results that other models have there
# (huggingface.co/Zyphra/ZAYA1-8B, commit 6186b08, for the last three). Values there are in percent.
_BENCHMARKS: Mapping[str, tuple[str, str]] = {
    "gsm8k": ("openai/gsm8k", "gsm8k"),
    "gpqa_diamond_zeroshot": ("Idavidrein/gpqa", "diamond"),
    "gpqa_diamond_cot_zeroshot": ("Idavidrein/gpqa", "diamond"),
    "mmlu_pro": ("TIGER-Lab/MMLU-Pro", "mmlu_pro"),
}
# Of several metrics of a task, the first of these is its score.
_METRICS = ("exact_match", "acc", "acc_norm")


def parse_benchmark(text: str) -> str:
    """Check the id of a data set.

    Raises:
        HybridError: it is not OWNER/NAME.
    """
    owner, slash, name = text.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise HybridError(
            f"--benchmark {text!r} is no data set of the hub", remedy="Give OWNER/NAME of a data set."
        )
    return text


def entries(receipt: Receipt, benchmark: str | None = None) -> list[dict[str, Any]]:
    """Return what a receipt has for the hub, as ``dataset_id``, ``task_id``, ``value``, ``date`` and ``notes``.

    Args:
        receipt: the receipt.
        benchmark: id of a data set of the hub for figures of speed; None leaves them out.
    """
    found: list[dict[str, Any]] = []
    quality = receipt.quality or {}
    seen: dict[str, Mapping[str, Any]] = {}
    for task in quality.get("tasks", ()):
        if task["task"] in _BENCHMARKS and task["metric"] in _METRICS:
            before = seen.get(task["task"])
            if before is None or _METRICS.index(task["metric"]) < _METRICS.index(before["metric"]):
                seen[task["task"]] = task
    settings = quality.get("task_settings") or {}
    for name, task in seen.items():
        dataset, task_id = _BENCHMARKS[name]
        notes = f"lm-eval {settings.get('lm_eval', '')}: {task['metric']}, {task['filter']}".replace(
            " :", ":"
        )
        notes += f"; {task['documents']} documents" + (", chat template" if settings.get("chat") else "")
        found.append(
            {
                "dataset_id": dataset,
                "task_id": task_id,
                "value": round(100 * float(task["value"]), 4),
                "notes": notes,
            }
        )
    if benchmark is not None:
        found += [{"dataset_id": benchmark, **entry} for entry in _speed(receipt)]
    date = receipt.made or None
    return [{**entry, "date": date} for entry in found]


def _speed(receipt: Receipt) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    gpus = (
        ", ".join(gpu["name"] for gpu in receipt.machine.get("gpus") or [])
        or receipt.machine.get("cpu")
        or "?"
    )
    base = f"{gpus}, vLLM {receipt.server['vllm']}, plugin {receipt.server['plugin'] or 'none'}"
    for measured in receipt.cells.values():
        cell, repeats = measured.cell, measured.repeats
        if not repeats:
            continue
        name = f"{cell.domain}_{cell.context}_batch{cell.batch}" + ("_warm" if cell.cache == "warm" else "")
        figures = {
            "ttft_ms": median(repeats, lambda r: r.ttft_ms),
            "tpot_ms": median(repeats, lambda r: r.tpot_ms),
            "tokens_per_second": over_repeats([r.throughput for r in repeats]),
            "acceptance_length": acceptance_length(repeats),
        }
        for metric, estimate in figures.items():
            if estimate is not None:
                notes = base
                if estimate.low is not None and estimate.high is not None:
                    notes += f"; 95 % interval {estimate.low:.4g} to {estimate.high:.4g}"
                value = float(f"{estimate.value:.5g}")
                rows.append({"task_id": f"{name}_{metric}", "value": value, "notes": notes})
    return rows


def write_eval_results(receipt: Receipt, folder: Path, benchmark: str | None = None) -> Path | None:
    """Write ``.eval_results/qwen36.yaml`` below ``folder`` through huggingface_hub's own writer.

    Returns:
        The file; None if there is nothing that the hub would read.

    Raises:
        HybridError: the installed huggingface_hub is too old to know the format.
    """
    found = entries(receipt, benchmark)
    if not found:
        return None
    try:
        import yaml  # type: ignore[import-untyped]
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError as error:
        raise HybridError(
            "the installed huggingface_hub does not know .eval_results",
            remedy="Run: pip install -U huggingface_hub",
        ) from error
    listed = eval_result_entries_to_yaml([EvalResultEntry(**entry) for entry in found])
    path = folder / FOLDER / "qwen36.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, yaml.safe_dump(listed, sort_keys=False, allow_unicode=True))
    return path
