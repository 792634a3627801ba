"""What the calls of `experiments.py` wrote, merged into one compact file, and read back.

    python -m bench.quality.results RESULTS.json … [--out bench/quality/results.json]

The first call that has an experiment gives its figures; later ones are kept under ``again``. Numbers have six
significant digits. Differences are turned round: experiment less control, so a negative difference of KLD is an
improvement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from bench.arguments import command_line
from bench.quality.grid import BY_NAME
from bench.results import Json, load, save
from gptq_hybrid.evaluate.compare import holm

FILE = Path(__file__).with_name("results.json")
_FIGURES = ("top1", "perplexity_ratio", "acceptance_length")
_MEASURES = ("kld_mean", "acceptance_length")
_FACTS = ("calibration_tokens", "relative_error_mean", "quantize_seconds", "seconds")


class Estimate(NamedTuple):
    """A figure with its 95 % interval over documents; of a difference, p of the sign-flip test."""

    value: float
    low: float
    high: float
    p: float = 1.0


class Domain(NamedTuple):
    """KLD in a domain; its difference to the control's, and p with Holm's correction over the domains."""

    kld: float
    difference: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One experiment.

    Attributes:
        call: which of ``Results.calls`` it came from, from 0.
        figures: ``top1``, ``perplexity_ratio`` and ``acceptance_length`` over all domains.
        against: its control, of the same call.
        differences: ``kld_mean`` and ``acceptance_length``, experiment less control.
    """

    name: str
    group: str
    call: int
    facts: Mapping[str, float]
    kld: Estimate
    figures: Mapping[str, float]
    against: str | None
    differences: Mapping[str, Estimate]
    domains: Mapping[str, Domain]

    @property
    def compared(self) -> bool:
        """Whether its KLD could differ: what lies on the MTP head alone has the control's KLD to the bit."""
        return "kld_mean" in self.differences and any(d.difference for d in self.domains.values())


@dataclass(frozen=True, eq=False)
class Results:
    """The file. ``again``: experiments that a later call ran once more, by name, in the order of calls."""

    calls: tuple[Mapping[str, Any], ...]
    runs: Mapping[str, Run]
    again: Mapping[str, tuple[Run, ...]]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Results:
        """From what :func:`merge` gives."""
        again: dict[str, tuple[Run, ...]] = {}
        for row in content["again"]:
            again[row["name"]] = (*again.get(row["name"], ()), _run(row, content["calls"]))
        runs = {row["name"]: _run(row, content["calls"]) for row in content["experiments"]}
        return cls(tuple(content["calls"]), runs, again)

    def group(self, *groups: str) -> list[Run]:
        """The experiments of some groups of the grid."""
        return [run for run in self.runs.values() if run.group in groups]

    def every(self, name: str) -> tuple[Run, ...]:
        """An experiment in all calls that ran it, the first first."""
        return (self.runs[name], *self.again.get(name, ()))

    def control(self, run: Run) -> Run:
        """What ``run`` was compared with: the control as the same call scored it."""
        return self.in_call(run.against or "", run.call)

    def in_call(self, name: str, call: int) -> Run:
        """An experiment as one call scored it.

        Raises:
            KeyError: no call, or not this one, ran it.
        """
        for run in self.every(name):
            if run.call == call:
                return run
        raise KeyError(f"call {call} has no {name}")

    def change(self, run: Run, measure: str = "kld_mean") -> Estimate:
        """Change of a figure against the control, as a share of the control's."""
        control = self.control(run)
        base = control.kld.value if measure == "kld_mean" else control.figures[measure]
        value, low, high, p = run.differences[measure]
        return Estimate(value / base, low / base, high / base, p)

    def domain_change(self, run: Run, domain: str) -> float:
        """Change of the KLD in one domain, as a share of the control's."""
        return (run.domains[domain].difference or 0.0) / self.control(run).domains[domain].kld

    def seeds(self, method: str) -> list[Run]:
        """A method by calibration seed, 0 first."""
        names = (method, *(f"{method}-seed-{seed}" for seed in (1, 2, 3)))
        return [self.runs[name] for name in names if name in self.runs]

    def same_seed(self, run: Run) -> Run:
        """`static` on the same calibration text: of the same seed, and for seed 0 of the same call."""
        _, seed, number = run.name.partition("-seed-")
        return self.runs[f"static{seed}{number}"] if seed else self.control(run)

    @cached_property
    def corrected(self) -> dict[str, float]:
        """p of the KLD over all domains, with Holm's correction over all experiments of the file."""
        names = [name for name, run in self.runs.items() if run.compared]
        p_values = holm([self.runs[name].differences["kld_mean"].p for name in names])
        return dict(zip(names, p_values, strict=True))


def _run(row: Json, calls: Sequence[Json]) -> Run:
    columns = [row["domains"][key] for key in ("kld", "difference", "p_holm") if key in row["domains"]]
    names = calls[row["call"]]["domains"]
    return Run(
        row["name"],
        BY_NAME[row["name"]].group,
        row["call"],
        row["facts"],
        Estimate(*row["kld"]),
        row["figures"],
        row.get("against"),
        {measure: Estimate(*values) for measure, values in row.get("differences", {}).items()},
        {name: Domain(*values) for name, values in zip(names, zip(*columns, strict=True), strict=True)},
    )


def merge(contents: Sequence[Mapping[str, Any]]) -> Json:
    """Several calls' results as one, see the module's text.

    Raises:
        ValueError: the calls had other settings or other documents.
    """
    calls: list[Json] = []
    experiments: dict[str, Json] = {}
    again: list[Json] = []
    for number, content in enumerate(contents):
        done = {name: e for name, e in content["experiments"].items() if "summary" in e}
        sizes = [
            {part["domain"]: [part["documents"], part["tokens"]] for part in e["summary"]["domains"]}
            for e in done.values()
        ]
        call = {"settings": content["settings"], "domains": sizes[0]}
        if any(size != sizes[0] for size in sizes):
            raise ValueError("experiments of one call differ in their documents")
        for key, value in call.items():
            if number and value != calls[0][key]:
                raise ValueError(f"call {number + 1} had other {key} than the first: {value}")
        calls.append({"environment": content["environment"], **call})
        for name, experiment in done.items():
            row = {"name": name, "call": number, **_compact(experiment, list(sizes[0]))}
            if name in experiments:
                again.append(row)
            else:
                experiments[name] = row
    return {"calls": calls, "experiments": list(experiments.values()), "again": again}


def _compact(experiment: Mapping[str, Any], domains: list[str]) -> Json:
    """A row of the file; figures by domain are lists in the order of ``domains``."""
    summary, against = experiment["summary"], experiment.get("against")
    overall = {**summary["overall"], "acceptance_length": summary["overall"]["acceptance"]["length"]}
    parts = {part["domain"]: part for part in summary["domains"]}
    row: Json = {
        "facts": {key: _round(experiment[key]) for key in _FACTS if experiment.get(key) is not None},
        "kld": [_round(overall["kld_mean"][end]) for end in ("value", "low", "high")],
        "figures": {key: _round(overall[key]["value"]) for key in _FIGURES},
        "domains": {"kld": [_round(parts[domain]["kld_mean"]["value"]) for domain in domains]},
    }
    if against:
        row["against"] = against["a"]
        row["differences"] = {m: _difference(against["overall"], m) for m in _MEASURES}
        parts = {part["domain"]: part for part in against["domains"]}
        differences = [_measure(parts[domain], "kld_mean") for domain in domains]
        row["domains"]["difference"] = [_round(-one["difference"]["value"]) for one in differences]
        row["domains"]["p_holm"] = [_round(one["p_holm"]) for one in differences]
    return row


def _difference(part: Mapping[str, Any], measure: str) -> list[float]:
    """Experiment less control: value, low, high and p."""
    one = _measure(part, measure)
    return [*(_round(-one["difference"][end]) for end in ("value", "high", "low")), _round(one["p"])]


def _measure(part: Mapping[str, Any], measure: str) -> Mapping[str, Any]:
    (one,) = [d for d in part["differences"] if d["measure"] == measure]
    return one


def _round(x: float) -> float:
    return float(f"{x:.6g}") + 0.0 if isinstance(x, float) else x  # no -0.0


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    merged = merge([load(path) or {} for path in args.results])
    save(args.out, merged)
    print(f"{len(merged['experiments'])} experiments, {len(merged['again'])} run again: {args.out}")


if __name__ == "__main__":
    main()
