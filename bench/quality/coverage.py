"""How often intervals contain the truth: the choice of the interval of `qwen36 eval`.

    python -m bench.quality.coverage [--repeat 400] [--only POPULATION …] [--out bench/quality/coverage.json]

Samples of 10, 20 and 40 documents are drawn from populations whose true figures are known; every kind of interval
is made from every sample, with 1,000 resamples. A kind is good where 95 % of its intervals contain the truth, half
of the misses on either side, and the intervals are short. Populations: two made ones (`populations.py`), and the
documents of `bench/mini` under plain rounding (`mini_scores.py`), from which whole documents are drawn with
replacement. `domains`: the figures over all of `summarize()` itself, for 15 domains of 10 documents that differ in
level and spread by domain. What was not asked for with `--only` stays in the file as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy.special import ndtr, ndtri, stdtrit

from bench.quality.populations import HEAVY, MODERATE, Measured, Population
from gptq_hybrid.evaluate import DocumentScores, summarize
from gptq_hybrid.evaluate._bootstrap import Draws, Ranked, draws_of, interval, ratio
from gptq_hybrid.evaluate._documents import Layout, Sums

RESAMPLES, TAIL = 1000, 0.025
LEVELS = {"KLD median": 0.5, "KLD p99": 0.99, "KLD p99.9": 0.999}
Ends = tuple[float, float]


def linear(documents: list[DocumentScores]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(numerator, denominator) of each document, for the figures that are ratios of sums."""
    sums = Sums.of(documents, Layout.of(documents))
    n, d = sums.numerators, sums.denominators
    return {
        "KLD mean": (n[:, 0], d[:, 0]),
        "top-1": (n[:, 1], d[:, 1]),
        "log perplexity ratio": (n[:, 3] - n[:, 2], d[:, 2]),
        "acceptance length": (d[:, -1] + n[:, -2] + n[:, -1], d[:, -1]),
        "second draft": (n[:, -1], n[:, -2]),
    }


def figures(documents: list[DocumentScores], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure under every row of weights."""
    found = {name: ratio(weights @ a, weights @ b) for name, (a, b) in linear(documents).items()}
    ranked = Ranked.of([d.kld for d in documents])
    return found | dict(zip(LEVELS, ranked.quantiles(weights, tuple(LEVELS.values())), strict=True))


def percentile(rows: np.ndarray, n: int, low: float, high: float) -> Ends:
    a, b = np.quantile(rows[1 + n :], [low, high])
    return float(a), float(b)


def accelerated(rows: np.ndarray, n: int, tail: float) -> Ends:
    """BCa (Efron 1987), acceleration from the jackknife, ties counted by half."""
    boot = rows[1 + n :]
    bias = ndtri(np.clip(((boot < rows[0]).mean() + (boot <= rows[0]).mean()) / 2, 1e-4, 1 - 1e-4))
    spread = rows[1 : 1 + n].mean() - rows[1 : 1 + n]
    square = (spread**2).sum()
    curve = (spread**3).sum() / (6 * square**1.5) if square > 0 else 0.0
    ends = []
    for z in (ndtri(tail), -ndtri(tail)):
        ends.append(float(ndtr(bias + (bias + z) / (1 - curve * (bias + z)))))
    return percentile(rows, n, *ends)


def deviation(weights: np.ndarray, a: np.ndarray, b: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Standard error of a ratio of sums under every row of weights, linearized."""
    count = weights.sum(axis=1)
    square = weights @ (a * a) - 2 * value * (weights @ (a * b)) + value**2 * (weights @ (b * b))
    return np.sqrt(np.maximum(square, 0) * count / (count - 1)) / (weights @ b)


def studentized(rows: np.ndarray, error: np.ndarray, n: int, logarithm: bool) -> Ends:
    """Bootstrap-t; on the logarithm by the delta method."""
    if logarithm:
        low, high = studentized(np.log(rows), error / rows, n, False)
        return float(np.exp(low)), float(np.exp(high))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (rows[1 + n :] - rows[0]) / error[1 + n :]
    low, high = np.quantile(t[np.isfinite(t)], [TAIL, 1 - TAIL])
    return float(rows[0] - high * error[0]), float(rows[0] - low * error[0])


def intervals(documents: list[DocumentScores], rng: np.random.Generator) -> dict[str, dict[str, Ends]]:
    """Ends of every kind of interval for every figure of one sample."""
    n = len(documents)
    share = np.full(n, 1 / n)
    full = draws_of([rng.multinomial(n, share, RESAMPLES).astype(float)])
    less: Draws = draws_of([rng.multinomial(n - 1, share, RESAMPLES).astype(float)])
    wide = float(ndtr(stdtrit(n - 1, TAIL)))
    rows_full, rows_less, sums = (
        figures(documents, full.weights),
        figures(documents, less.weights),
        linear(documents),
    )
    found: dict[str, dict[str, Ends]] = {}
    for figure, rows in rows_full.items():
        chosen = interval(rows_less[figure], less)
        kinds: dict[str, Ends] = {
            "percentile": percentile(rows, n, TAIL, 1 - TAIL),
            "BCa": accelerated(rows, n, TAIL),
            "expanded percentile": (chosen.low, chosen.high),
            "expanded BCa": accelerated(rows_less[figure], n, wide),
        }
        if figure in sums:
            error = deviation(full.weights, *sums[figure], rows)
            t = -stdtrit(n - 1, TAIL) * error[0]
            kinds["Student"] = (rows[0] - t, rows[0] + t)
            kinds["studentized"] = studentized(rows, error, n, False)
            if (rows > 0).all():
                factor = np.exp(t / rows[0])
                kinds["Student of log"] = (rows[0] / factor, rows[0] * factor)
                kinds["studentized of log"] = studentized(rows, error, n, True)
        found[figure] = kinds
    return found


def truth(population: Population | Measured, seed: int) -> dict[str, float]:
    """Figures of the whole population: exact where it is finite, else of 40,000 documents."""
    if isinstance(population, Measured):
        documents = list(population.scores)
    else:
        documents = population.draw(np.random.default_rng(seed), 40_000)
    true = {name: float(a.sum() / b.sum()) for name, (a, b) in linear(documents).items()}
    tokens = np.concatenate([d.kld for d in documents])
    return true | {k: float(np.quantile(tokens, q, method="inverted_cdf")) for k, q in LEVELS.items()}


Outcome = tuple[bool, bool, float]


def outcome(true: float, ends: Ends) -> Outcome:
    """Truth below the interval, truth above it, width by the truth."""
    low, high = ends
    return true < low, true > high, (high - low) / abs(true)


def digest(seen: list[Outcome]) -> dict[str, float]:
    """Shares of intervals with the truth inside, below, above; median width over the truth."""
    return {
        "covers": round(1 - float(np.mean([a or b for a, b, _ in seen])), 4),
        "truth_below": round(float(np.mean([a for a, _, _ in seen])), 4),
        "truth_above": round(float(np.mean([b for _, b, _ in seen])), 4),
        "width": round(float(np.median([w for _, _, w in seen])), 4),
        "samples": len(seen),
    }


def coverage(
    population: Population | Measured, count: int, repeat: int, seed: int, true: dict[str, float]
) -> dict[str, dict[str, dict[str, float]]]:
    """By figure and kind, see :func:`digest`."""
    rng = np.random.default_rng([seed, count])
    outcomes: dict[str, dict[str, list[Outcome]]] = {}
    for _ in range(repeat):
        for figure, kinds in intervals(population.draw(rng, count), rng).items():
            for kind, ends in kinds.items():
                outcomes.setdefault(figure, {}).setdefault(kind, []).append(outcome(true[figure], ends))
    return {
        figure: {kind: digest(seen) for kind, seen in kinds.items()} for figure, kinds in outcomes.items()
    }


def domain_population(i: int) -> Population:
    """Domain i of 15: KLD from 0.4 to 2.7 times the level, every third heavy-tailed."""
    base = HEAVY if i % 3 == 0 else MODERATE
    return replace(base, level=base.level - 0.9 + 1.9 * i / 14)


def over_all(repeat: int, seed: int, count: int = 10) -> dict[str, Any]:
    """Coverage of the figures over all domains, from the code that `qwen36 eval` runs."""
    names = {"kld_mean": "KLD mean", "top1": "top-1", "kld_median": "KLD median", "kld_p99": "KLD p99"}
    names["kld_p999"] = "KLD p99.9"
    domains = [domain_population(i) for i in range(15)]
    # Of every domain the same number of tokens: the mixture that the figures over all are about.
    rng, kept = np.random.default_rng(seed), 1_000_000
    pools = [p.draw(rng, 5_000) for p in domains]
    sums = [linear(pool) for pool in pools]
    true = {n: float(np.mean([s[n][0].sum() / s[n][1].sum() for s in sums])) for n in ("KLD mean", "top-1")}
    tokens = np.concatenate([rng.choice(np.concatenate([d.kld for d in pool]), kept) for pool in pools])
    true |= {n: float(np.quantile(tokens, q, method="inverted_cdf")) for n, q in LEVELS.items()}
    seen: dict[str, list[Outcome]] = {name: [] for name in names.values()}
    for _ in range(repeat):
        drawn = [d for i, p in enumerate(domains) for d in p.draw(rng, count, f"domain {i}")]
        overall = summarize("q", drawn, resamples=RESAMPLES, seed=int(rng.integers(1 << 31))).overall
        for field, name in names.items():
            estimate = getattr(overall, field)
            seen[name].append(outcome(true[name], (estimate.low, estimate.high)))
    return {
        "truth": true,
        "documents": {count: {k: {"expanded percentile": digest(v)} for k, v in seen.items()}},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = ("moderate", "heavy", "mini", "domains")
    parser.add_argument("--repeat", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=every, nargs="+", default=every)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("coverage.json"))
    args = parser.parse_args()
    found = json.loads(args.out.read_text())["populations"] if args.out.exists() else {}
    for name in args.only:
        begun = time.perf_counter()
        if name == "domains":
            result = over_all(args.repeat, args.seed)
        else:
            if name == "mini":
                from bench.quality.mini_scores import mini_scores

                population: Population | Measured = Measured(tuple(mini_scores()))
            else:
                population = {"moderate": MODERATE, "heavy": HEAVY}[name]
            true = truth(population, args.seed)
            sizes = {n: coverage(population, n, args.repeat, args.seed, true) for n in (10, 20, 40)}
            result = {"truth": true, "documents": sizes}
        found[name] = result | {"repeat": args.repeat, "seconds": round(time.perf_counter() - begun)}
        for n, seen in result["documents"].items():
            for figure, kinds in seen.items():
                print(name, n, figure, *(f"{k} {100 * v['covers']:.1f}" for k, v in kinds.items()), sep="; ")
        content = {
            "resamples": RESAMPLES,
            "seed": args.seed,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "populations": found,
        }
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
