"""How experiments compare: shares of the control's figure, corrected p-values, which control, what was not run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.quality.grid import BY_NAME
from bench.quality.results import ALL, Difference, Estimate, Results, Run
from gptq_hybrid.evaluate._compare import holm

GPTAQ = Path(__file__).with_name("gptaq.json")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def p_value(value: float) -> str:
    """Four digits where it is small."""
    return f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def percent(value: float, digits: int = 1) -> str:
    """0.021 as +2.1 %, with a true minus."""
    text = f"{100 * value:+.{digits}f} %"
    return text.replace("-", "−") if float(f"{100 * value:.{digits}f}") else f"{0:.{digits}f} %"


def relative(found: Difference, base: float, digits: int = 1) -> str:
    """A difference as a share of the control's figure, with its interval; a digit more where that is narrow."""
    if 0 < found.high - found.low < 0.002 * base:
        digits = 2
    value, low, high = (percent(x / base, digits).removesuffix(" %") for x in found.estimate)
    return f"{value} % [{low}, {high}]"


def change(run: Run, results: Results, measure: str = "kld_mean", domain: str = ALL) -> Estimate:
    """Change of a figure against the control, as a share of the control's."""
    base = results.control(run).figures[measure][domain].value
    return Estimate(*(x / base for x in run.differences[measure][domain].estimate))


@cache
def corrected(results: Results) -> dict[str, float]:
    """p of the KLD over all of each experiment, with Holm's correction for all that are in the file."""
    names = [name for name, run in results.runs.items() if tested(run)]
    found = holm([results.runs[name].differences["kld_mean"][ALL].p for name in names])
    return dict(zip(names, found, strict=True))


def tested(run: Run) -> bool:
    """Whether the KLD was compared with that of a control that it could differ from."""
    # What lies on the MTP head alone has the control's KLD to the bit: nothing was tested.
    found = run.differences.get("kld_mean")
    return found is not None and any(d.value for d in found.values())


def every(results: Results, name: str) -> tuple[Run, ...]:
    """An experiment in all calls that ran it, the first first."""
    return (results.runs[name], *results.again.get(name, ()))


def small_runs() -> dict[str, Mapping[str, Any]]:
    """What ran on fewer documents than the rest, as `experiments.py` wrote it, by name."""
    found: dict[str, Mapping[str, Any]] = json.loads(GPTAQ.read_text(encoding="utf-8"))["experiments"]
    return found


def missing(results: Results) -> list[str]:
    """Experiments of the grid that no call has run."""
    return [name for name in BY_NAME if name not in results.runs]


def seed_names(results: Results, method: str) -> list[str]:
    """The experiments of a method by calibration seed, 0 first, as far as they were run."""
    names = [method, *(f"{method}-seed-{seed}" for seed in (1, 2, 3))]
    return [name for name in names if name in results.runs]


def same_seed(run: Run, results: Results) -> Run:
    """`static` on the same calibration text: of the same seed, and for seed 0 of the same call."""
    _, seed, number = run.name.partition("-seed-")
    return results.runs[f"static{seed}{number}"] if seed else results.control(run)


def against_static(run: Run, results: Results) -> Estimate:
    """KLD against `static`, as a share; of an experiment on `static-mse`, through that one's value."""
    found = change(run, results)
    if run.against == "static":
        return found
    through = results.control(run)
    factor = through.kld.value / results.control(through).kld.value
    return Estimate(*(factor * (1 + x) - 1 for x in found))
