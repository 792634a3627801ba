"""Run the experiments of `grid.py` on the mini model, several at a time, and sum them up.

    python -m bench.quality.experiments WORK OUT [--only NAME,GROUP …] [--workers 8]

WORK keeps checkpoints and scores: a second call goes on where the first was cut off. OUT/results.json holds,
for each experiment, figures by domain with intervals, and the paired comparison with `static` (or its base).
A GPU is used if there is one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from bench.arguments import command_line
from bench.engine import place
from bench.quality.grid import BY_NAME, CONTROL, EXPERIMENTS, Experiment
from bench.results import save

_ROOT = Path(__file__).parents[1]
MINI, HELD_OUT = _ROOT / "mini" / "checkpoint", _ROOT / "mini" / "heldout"
_DRAFTS, _MAX_LENGTH, _BATCH = 2, 1024, 16_384
_FIELDS = ("kld", "top1", "nll_ref", "nll", "drafts_ref", "drafts")


def _limit() -> int | None:
    """Documents a domain at most, in this process and those it starts."""
    limit = os.environ.get("QUALITY_DOCUMENTS")
    return int(limit) if limit else None


class Bench:
    """What one process needs: documents, the reference's states, the device."""

    def __init__(self, work: Path) -> None:
        import torch
        from transformers import AutoTokenizer

        from bench.quality.quantizer import unpack_pool
        from gptq_hybrid.calibration import encode_documents, load_documents
        from gptq_hybrid.evaluate.passes import PassSettings, run_pass
        from gptq_hybrid.streaming import CheckpointWeights, OutputHead, TextStack, make_batches

        self.work = work
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(MINI)
        self.pool = unpack_pool(work / f"process-{os.getpid()}")
        self.documents = encode_documents(
            load_documents([str(HELD_OUT)], limit=_limit()), self.tokenizer, _MAX_LENGTH
        )
        self.batches = make_batches([d.input_ids for d in self.documents], _BATCH)
        self.settings = PassSettings(self.device, torch.float32, _DRAFTS)
        reference = CheckpointWeights(MINI)
        head = OutputHead(TextStack(reference, self.device, torch.float32))
        self.reference = (run_pass(reference, self.batches, self.settings, has_mtp=True), head)

    def run(self, experiment: Experiment) -> dict[str, Any]:
        """Quantize, score, save the scores; returns what is known of the run."""
        import torch

        from bench.quality.quantizer import quantize, weights
        from gptq_hybrid.evaluate.passes import run_pass
        from gptq_hybrid.evaluate.tokens import score_documents
        from gptq_hybrid.streaming import OutputHead, TextStack

        started = time.perf_counter()
        checkpoint = self.work / "checkpoints" / (experiment.base or experiment.name)
        facts: dict[str, Any] = {}
        if experiment.base is None and experiment.rtn is None and not (checkpoint / "config.json").is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)
            facts = quantize(experiment, MINI, checkpoint, self.pool, self.tokenizer)
        facts["quantize_seconds"] = round(time.perf_counter() - started, 1)
        own = weights(experiment, MINI, checkpoint)
        passed = run_pass(own, self.batches, self.settings, has_mtp=True)
        head = OutputHead(TextStack(own, self.device, torch.float32))
        scores = score_documents(self.documents, self.batches, self.reference, (passed, head), drafts=_DRAFTS)
        save_scores(self.work / "scores" / f"{experiment.name}.npz", scores)
        return {**facts, "seconds": round(time.perf_counter() - started, 1)}


_BENCH: dict[int, Bench] = {}


def _work(arguments: tuple[Path, str]) -> tuple[str, dict[str, Any]]:
    work, name = arguments
    if os.getpid() not in _BENCH:
        _BENCH[os.getpid()] = Bench(work)
    try:
        facts = _BENCH[os.getpid()].run(BY_NAME[name])
    except Exception as error:  # noqa: BLE001 — reported as this experiment's result
        return name, {"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}
    return name, facts


def save_scores(path: Path, scores: list[Any]) -> None:
    """Write `DocumentScores`; the file appears only once it is whole."""
    arrays = {f"{i}.{name}": getattr(s, name) for i, s in enumerate(scores) for name in _FIELDS}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    names = {"domains": [s.domain for s in scores], "keys": [s.key for s in scores]}
    np.savez(temporary, **{name: np.array(values) for name, values in names.items()}, **arrays)
    temporary.replace(path)


def load_scores(path: Path) -> list[Any]:
    """`DocumentScores` as saved by a run."""
    from gptq_hybrid.evaluate import DocumentScores

    with np.load(path) as arrays:
        return [
            DocumentScores(str(domain), str(key), **{name: arrays[f"{i}.{name}"] for name in _FIELDS})
            for i, (domain, key) in enumerate(zip(arrays["domains"], arrays["keys"], strict=True))
        ]


def _sum_up(arguments: tuple[Path, str]) -> tuple[str, dict[str, Any]]:
    """Figures of one experiment, and the paired comparison with its control."""
    from dataclasses import asdict

    from gptq_hybrid.evaluate import compare, summarize

    work, name = arguments
    experiment = BY_NAME[name]
    scores = load_scores(work / "scores" / f"{name}.npz")
    figures: dict[str, Any] = {"summary": asdict(summarize(name, scores))}
    control = experiment.control
    if control != name and (work / "scores" / f"{control}.npz").is_file():
        against = load_scores(work / "scores" / f"{control}.npz")
        figures["against"] = asdict(compare((control, name), against, scores))
    return name, figures


def run(work: Path, experiments: list[Experiment], workers: int) -> dict[str, dict[str, Any]]:
    """Run what has no scores yet, bases first; returns facts by name, also of earlier calls."""
    log = work / "facts.json"
    facts: dict[str, dict[str, Any]] = json.loads(log.read_text()) if log.is_file() else {}
    work.mkdir(parents=True, exist_ok=True)
    left = [e for e in experiments if not (work / "scores" / f"{e.name}.npz").is_file()]
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        # Overlays lie on checkpoints of the first stage, and take seconds.
        stages = (
            [(work, e.name) for e in left if e.base is None],
            [(work, e.name) for e in left if e.base is not None],
        )
        for stage in stages:
            # Longest first: GPTAQ takes a row at a time, the search for scales doubles a run.
            stage.sort(key=lambda task: ("gptaq" not in task[1], "mse" not in task[1]))
            for name, outcome in pool.imap_unordered(_work, stage):
                facts[name] = outcome
                log.write_text(json.dumps(facts, indent=1))
                line = outcome.get("failed") or outcome.get("seconds")
                print(f"{name:28} {line}", flush=True)
    return facts


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "work", "out")
    parser.add_argument("--only", default="", help="names or groups, by commas")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--documents", type=int, help="most held-out documents of a domain")
    args = parser.parse_args()
    if args.documents:
        os.environ["QUALITY_DOCUMENTS"] = str(args.documents)

    names = set(filter(None, args.only.split(",")))
    chosen = [e for e in EXPERIMENTS if not names or names & {e.name, e.group}]
    facts = run(args.work, chosen, args.workers)
    done = [e.name for e in EXPERIMENTS if (args.work / "scores" / f"{e.name}.npz").is_file()]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        summed = dict(pool.imap_unordered(_sum_up, [(args.work, name) for name in done]))

    result = {
        "environment": place(),
        "settings": {
            "max_length": _MAX_LENGTH,
            "drafts": _DRAFTS,
            "dtype": "float32",
            "control": CONTROL,
            "documents": _limit(),
        },
        "experiments": {
            e.name: {"group": e.group, **facts.get(e.name, {}), **summed.get(e.name, {})}
            for e in EXPERIMENTS
            if e.name in summed or "failed" in facts.get(e.name, {})
        },
    }
    args.out.mkdir(parents=True, exist_ok=True)
    save(args.out / "results.json", result)
    print(f"{len(done)} experiments in {args.out / 'results.json'}")


if __name__ == "__main__":
    main()
