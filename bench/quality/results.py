"""What the calls of `experiments.py` wrote, merged into one compact file, and read back.

    python -m bench.quality.results RESULTS.json … [--out bench/quality/results.json]

The first call that has an experiment gives its figures; later ones are kept under ``again``. An experiment a line,
six significant digits. Differences are turned round: experiment less control, so that a negative difference of KLD
is an improvement. Left out, as they follow from what is kept: verdicts, the warnings about few documents,
and the quantized model's perplexity (the reference's times the ratio).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gptq_hybrid.checkpoint._atomic import write_text_atomic

FILE = Path(__file__).with_name("results.json")
ALL = "all"  # the name of the figures over all domains
_FIGURES = ("kld_mean", "kld_median", "kld_p99", "kld_p999", "top1", "perplexity_ratio")
_FACTS = (
    "calibration_tokens", "calibration_rows", "calibration_domains", "relative_error_mean", "outcomes",
    "quantize_seconds", "seconds",
)  # fmt: skip
Rows = dict[str, dict[str, list[float]]]


class Estimate(NamedTuple):
    """A figure with its 95 % interval over documents."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """Experiment less control, paired by document; p of the sign-flip test, Holm's correction over domains."""

    value: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Run:
    """One experiment. ``figures`` and ``differences`` by measure, then by domain (``all``: over all).

    ``call``: which of ``Results.calls`` it came from, from 0. ``against``: its control, of the same call.
    """

    name: str
    group: str
    call: int
    facts: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, Estimate]]
    against: str | None
    differences: Mapping[str, Mapping[str, Difference]]

    @property
    def kld(self) -> Estimate:
        """Nats per token over all domains."""
        return self.figures["kld_mean"][ALL]


@dataclass(frozen=True, eq=False)
class Results:
    """The file. ``again``: experiments that a later call ran once more, by name, in the order of calls."""

    calls: tuple[Mapping[str, Any], ...]
    runs: Mapping[str, Run]
    again: Mapping[str, tuple[Run, ...]]
    failed: Mapping[str, str]

    @cached_property
    def domains(self) -> dict[str, Mapping[str, Any]]:
        """Documents, tokens and the unquantized model's figures by domain, from the first call."""
        return dict(self.calls[0]["domains"])

    def control(self, run: Run) -> Run:
        """What ``run`` was compared with: the control as the same call scored it."""
        if run.against is None:
            raise ValueError(f"{run.name} was compared with nothing")
        for found in (self.runs[run.against], *self.again.get(run.against, ())):
            if found.call == run.call:
                return found
        raise ValueError(f"call {run.call} has no {run.against}")


def load(path: Path = FILE) -> Results:
    """Read what :func:`merge` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    again: dict[str, tuple[Run, ...]] = {}
    for row in content["again"]:
        again[row["name"]] = (*again.get(row["name"], ()), _run(row))
    runs = {row["name"]: _run(row) for row in content["experiments"]}
    return Results(tuple(content["calls"]), runs, again, content["failed"])


def _run(row: Mapping[str, Any]) -> Run:
    figures = {m: {d: Estimate(*v) for d, v in by.items()} for m, by in row["figures"].items()}
    differences = {m: {d: Difference(*v) for d, v in by.items()} for m, by in row["differences"].items()}
    facts = {key: row.get(key) for key in _FACTS}
    return Run(row["name"], row["group"], row["call"], facts, figures, row["against"], differences)


def merge(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several calls' results as one, see the module's text.

    Raises:
        ValueError: the calls had other settings or other documents.
    """
    calls: list[dict[str, Any]] = []
    experiments: dict[str, Any] = {}
    again: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for number, content in enumerate(found):
        done = {n: e for n, e in content["experiments"].items() if "summary" in e}
        domains = _reference(done)
        if number and content["settings"] != found[0]["settings"]:
            raise ValueError(f"call {number + 1} had other settings than the first: {content['settings']}")
        if number and _documents(domains) != _documents(calls[0]["domains"]):
            raise ValueError(f"call {number + 1} scored other documents than the first")
        calls.append(
            {"environment": content["environment"], "settings": content["settings"], "domains": domains}
        )
        for name, experiment in done.items():
            row = {"name": name, "call": number, **_compact(experiment)}
            if name in experiments:
                again.append(row)
            else:
                experiments[name] = row
        failed |= {n: e["failed"] for n, e in content["experiments"].items() if "failed" in e}
    failed = {name: why for name, why in failed.items() if name not in experiments}
    return {"calls": calls, "experiments": list(experiments.values()), "again": again, "failed": failed}


def _parts(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [summary["overall"], *summary["domains"]]


def _reference(done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Documents, tokens and the unquantized model by domain; the same in every experiment of a call."""
    keys = ("documents", "tokens", "draft_positions")
    tables = []
    for experiment in done.values():
        table = {}
        for part in _parts(experiment["summary"]):
            ref = {
                "perplexity": _triple(part["perplexity_ref"]),
                **_acceptance(part["acceptance_ref"]),
            }
            table[part["domain"]] = {**{k: part[k] for k in keys}, **ref}
        tables.append(table)
    if any(table != tables[0] for table in tables):
        raise ValueError("experiments of one call differ in their documents or their reference")
    return tables[0]


def _documents(domains: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (row["documents"], row["tokens"]) for name, row in domains.items()}


def _compact(experiment: Mapping[str, Any]) -> dict[str, Any]:
    figures: Rows = {}
    for part in _parts(experiment["summary"]):
        values = {key: _triple(part[key]) for key in _FIGURES} | _acceptance(part["acceptance"])
        for key, value in values.items():
            figures.setdefault(key, {})[part["domain"]] = value
    differences: Rows = {}
    against = experiment.get("against")
    for part in _parts(against) if against else ():
        for d in part["differences"]:
            low, high = -d["difference"]["high"], -d["difference"]["low"]
            row = [-d["difference"]["value"], low, high, d["p"], d["p_holm"]]
            differences.setdefault(d["measure"], {})[part["domain"]] = [_round(x) for x in row]
    facts = {k: _round(v) if isinstance(v := experiment[k], float) else v for k in _FACTS if k in experiment}
    control = against["a"] if against else None
    return {
        "group": experiment["group"],
        **facts,
        "figures": figures,
        "against": control,
        "differences": differences,
    }


def _acceptance(found: Mapping[str, Any]) -> dict[str, list[float]]:
    positions = {f"accepted_{i + 1}": _triple(p) for i, p in enumerate(found["positions"])}
    return {"acceptance_length": _triple(found["length"]), **positions}


def _triple(found: Mapping[str, float]) -> list[float]:
    return [_round(found[key]) for key in ("value", "low", "high")]


def _round(x: float) -> float:
    return float(f"{x:.6g}") + 0.0  # no -0.0


def text_of(merged: Mapping[str, Any]) -> str:
    """The file's text: JSON, a call or an experiment a line."""

    def lines(rows: Sequence[Any]) -> str:
        return ",\n".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows)

    parts = [f'"{key}": [\n{lines(merged[key])}\n]' for key in ("calls", "experiments", "again")]
    return "{" + ",\n".join([*parts, f'"failed": {json.dumps(merged["failed"])}']) + "}\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    merged = merge([json.loads(path.read_text(encoding="utf-8")) for path in args.results])
    text = text_of(merged)
    write_text_atomic(args.out, text)
    print(
        f"{len(merged['experiments'])} experiments, {len(merged['again'])} run again, "
        f"{len(merged['failed'])} failed; {len(text.encode()) / 1e6:.2f} MB in {args.out}"
    )


if __name__ == "__main__":
    main()
