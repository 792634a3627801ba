"""Are the intervals and the paired test of `qwen36 eval` right? Simulations, on a CPU.

    python -m bench.quality.intervals coverage [--only POPULATION …] [--scores WORK/scores/rtn.npz]
    python -m bench.quality.intervals power

`coverage`: how often the intervals contain the truth, beside plain percentiles. Samples of 10, 20 and 40
documents are drawn from populations whose true figures are known; both kinds of interval are made from every
sample, with 1,000 resamples. Populations: two made ones, and with `--scores` real documents, as `experiments.py`
keeps them, from which whole documents are drawn with replacement. `domains`: the figures over all of
`summarize()` itself, for 15 domains of 10 documents that differ in level and spread by domain. What `--only`
leaves out stays in coverage.json.

`power`: how often the paired test shows a difference where there is none, and where there is one. Documents come
from the moderate population. Each checkpoint's KLD of a document is that of the population times a log-normal
factor of its own (standard deviation 0.3). Without a difference ("alike") the test must reject in at most 5 % of
the samples. "Other shape" has equal means too, but B is a tenth better on 9 documents of 10 and 1.9 times as bad
on the tenth: not the test's null hypothesis, and so the place to look for its limits. "Family" is the chance that
Holm's correction lets any of 15 domains without a difference through.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.arguments import command_line
from bench.results import Json, load, save
from gptq_hybrid.evaluate import DocumentScores, summarize
from gptq_hybrid.evaluate.bootstrap import Draws, RankedTokens, build_draws, interval, ratio
from gptq_hybrid.evaluate.compare import ALPHA, holm, sign_flip
from gptq_hybrid.evaluate.documents import RateColumns, Sums

COVERAGE, POWER = (Path(__file__).with_name(f"{name}.json") for name in ("coverage", "power"))
RESAMPLES, TAIL = 1000, 0.025
COUNTS = (10, 20, 40)
# Of the test: standard deviation of the factors' logarithms, and domains of a family.
NOISE, FAMILY = 0.3, 15
LEVELS = {"KLD median": 0.5, "KLD p99": 0.99, "KLD p99.9": 0.999}
Ends = tuple[float, float]


@dataclass(frozen=True)
class Population:
    """Documents whose tokens have log-normal KLD around a level of their own.

    What follows from KLD is kept: the NLL rises by it on average, with a variance of twice it (targets drawn from
    the reference, second order); the argmax changes where it is large.

    Attributes:
        documents, tokens: standard deviation of log KLD, between documents and within one.
        length: standard deviation of the log length, around 300 tokens.
        correlation: of log length and the document's log KLD.
        spikes: share of tokens with 30 times the KLD.
    """

    documents: float
    tokens: float
    length: float
    correlation: float
    spikes: float
    level: float = -5.0

    def draw(self, rng: np.random.Generator, count: int, domain: str = "d") -> list[DocumentScores]:
        """``count`` independent documents."""
        return [self._document(rng, domain, f"{i:06}") for i in range(count)]

    def _document(self, rng: np.random.Generator, domain: str, key: str) -> DocumentScores:
        shared, own = rng.normal(size=2)
        scale = self.level + self.documents * shared
        mixed = self.correlation * shared + np.sqrt(1 - self.correlation**2) * own
        tokens = int(np.clip(300 * np.exp(self.length * mixed), 32, 2048))
        kld = np.exp(rng.normal(scale, self.tokens, tokens))
        kld = np.minimum(np.where(rng.random(tokens) < self.spikes, 30 * kld, kld), 15.0)
        nll_ref = rng.gamma(0.6, 3.0, tokens)
        nll = nll_ref + rng.normal(kld, np.sqrt(2 * kld))
        top1 = rng.random(tokens) > np.minimum(0.5, 0.5 * np.sqrt(kld))
        rate = 1 / (1 + np.exp(-rng.normal(1.3, 0.6)))
        drafts_ref = rng.random((tokens - 2, 2)) < rate
        drafts = drafts_ref & (rng.random((tokens - 2, 2)) > 0.02 + 0.1 * rng.random())
        f4 = np.float32
        return DocumentScores(
            domain, key, kld.astype(f4), top1, nll_ref.astype(f4), nll.astype(f4), drafts_ref, drafts
        )


@dataclass(frozen=True)
class Measured:
    """Real documents, drawn with replacement: the truth is the figure of all of them."""

    scores: tuple[DocumentScores, ...]

    def draw(self, rng: np.random.Generator, count: int, domain: str = "d") -> list[DocumentScores]:
        """``count`` documents, each possibly several times."""
        chosen = [self.scores[i] for i in rng.integers(len(self.scores), size=count)]
        return [
            DocumentScores(domain, f"{i:06}", d.kld, d.top1, d.nll_ref, d.nll, d.drafts_ref, d.drafts)
            for i, d in enumerate(chosen)
        ]


MODERATE = Population(documents=0.4, tokens=1.6, length=0.5, correlation=0.0, spikes=0.0)
HEAVY = Population(documents=0.9, tokens=2.2, length=0.9, correlation=-0.4, spikes=0.002)


def linear(documents: list[DocumentScores]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(numerator, denominator) of each document, for the figures that are ratios of sums."""
    sums = Sums.of(documents, RateColumns.of(documents))
    n, d = sums.numerators, sums.denominators
    return {
        "KLD mean": (n[:, 0], d[:, 0]),
        "top-1": (n[:, 1], d[:, 1]),
        "log perplexity ratio": (n[:, 3] - n[:, 2], d[:, 2]),
        "acceptance length": (d[:, -1] + n[:, -2] + n[:, -1], d[:, -1]),
    }


def figures(documents: list[DocumentScores], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure under every row of weights."""
    ratios = {name: ratio(weights @ a, weights @ b) for name, (a, b) in linear(documents).items()}
    ranked = RankedTokens.of([d.kld for d in documents])
    return ratios | dict(zip(LEVELS, ranked.quantiles(weights, tuple(LEVELS.values())), strict=True))


def intervals(documents: list[DocumentScores], rng: np.random.Generator) -> dict[str, dict[str, Ends]]:
    """Ends of both kinds of interval for every figure of one sample."""
    n = len(documents)
    share = np.full(n, 1 / n)
    full = build_draws([rng.multinomial(n, share, RESAMPLES).astype(float)])
    less: Draws = build_draws([rng.multinomial(n - 1, share, RESAMPLES).astype(float)])
    plain, chosen = figures(documents, full.weights), figures(documents, less.weights)
    by_figure: dict[str, dict[str, Ends]] = {}
    for figure, rows in plain.items():
        low, high = np.quantile(rows[1 + n :], [TAIL, 1 - TAIL])
        used = interval(chosen[figure], less)
        by_figure[figure] = {"percentile": (low, high), "expanded percentile": (used.low, used.high)}
    return by_figure


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


def digest(outcomes: list[Outcome]) -> list[float]:
    """Shares of intervals with the truth inside, below and above; median width over the truth."""
    below, above, width = zip(*outcomes, strict=True)
    missed = float(np.mean(below) + np.mean(above))
    return [round(float(x), 4) for x in (1 - missed, np.mean(below), np.mean(above), np.median(width))]


def coverage(population: Population | Measured, repeat: int, seed: int) -> Json:
    """:func:`digest` by figure, kind of interval and number of documents."""
    true = truth(population, seed)
    by_figure: Json = {}
    for count in COUNTS:
        rng = np.random.default_rng([seed, count])
        outcomes: dict[tuple[str, str], list[Outcome]] = {}
        for _ in range(repeat):
            for figure, kinds in intervals(population.draw(rng, count), rng).items():
                for kind, ends in kinds.items():
                    outcomes.setdefault((figure, kind), []).append(outcome(true[figure], ends))
        for (figure, kind), pairs in outcomes.items():
            by_figure.setdefault(figure, {}).setdefault(kind, {})[str(count)] = digest(pairs)
    return by_figure


def domain_population(i: int) -> Population:
    """Domain i of 15: KLD from 0.4 to 2.7 times the level, every third heavy-tailed."""
    base = HEAVY if i % 3 == 0 else MODERATE
    return replace(base, level=base.level - 0.9 + 1.9 * i / 14)


def over_all(repeat: int, seed: int, count: int = 10) -> Json:
    """Coverage of the figures over all domains, from the code that `qwen36 eval` runs."""
    names = {"kld_mean": "KLD mean", "top1": "top-1", "kld_median": "KLD median", "kld_p99": "KLD p99"}
    names["kld_p999"] = "KLD p99.9"
    domains = [domain_population(i) for i in range(15)]
    # Of every domain the same number of tokens: the mixture that the figures over all are about.
    rng, tokens_each = np.random.default_rng(seed), 1_000_000
    pools = [p.draw(rng, 5_000) for p in domains]
    sums = [linear(pool) for pool in pools]
    true = {n: float(np.mean([s[n][0].sum() / s[n][1].sum() for s in sums])) for n in ("KLD mean", "top-1")}
    tokens = np.concatenate(
        [rng.choice(np.concatenate([d.kld for d in pool]), tokens_each) for pool in pools]
    )
    true |= {n: float(np.quantile(tokens, q, method="inverted_cdf")) for n, q in LEVELS.items()}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names.values()}
    for _ in range(repeat):
        drawn = [d for i, p in enumerate(domains) for d in p.draw(rng, count, f"domain {i}")]
        overall = summarize("q", drawn, resamples=RESAMPLES, seed=int(rng.integers(1 << 31))).overall
        for field, name in names.items():
            estimate = getattr(overall, field)
            outcomes[name].append(outcome(true[name], (estimate.low, estimate.high)))
    return {figure: {"expanded percentile": {str(count): digest(v)}} for figure, v in outcomes.items()}


def document_sums(rng: np.random.Generator, count: int = 4_000) -> np.ndarray:
    """Sums of KLD of documents of the population."""
    return np.array([float(d.kld.sum()) for d in MODERATE.draw(rng, count)])


def differences(rng: np.random.Generator, pool: np.ndarray, n: int, factor: float) -> np.ndarray:
    """[n, 1] sums of A less those of B, whose mean is `factor` times as high."""
    noise = np.exp(rng.normal(0, NOISE, (2, n)))
    return (rng.choice(pool, n) * (noise[0] - factor * noise[1]))[:, None]


def other_shape(rng: np.random.Generator, pool: np.ndarray, n: int) -> np.ndarray:
    """[n, 1] differences of mean zero that are not symmetric."""
    return (rng.choice(pool, n) * (1 - np.where(rng.random(n) < 0.1, 1.9, 0.9)))[:, None]


def simulate(repeat: int, seed: int) -> Json:
    """Shares of samples in which a difference was shown."""
    rng = np.random.default_rng(seed)
    pool = document_sums(rng)
    result: Json = {"alike": {}, "other_shape": {}, "family": {}, "power": {}}

    def p(sample: np.ndarray) -> float:
        return float(sign_flip(sample, rng)[0])

    for n in (6, 10, 20, 40):
        alike = [p(differences(rng, pool, n, 1.0)) <= ALPHA for _ in range(repeat)]
        result["alike"][str(n)] = float(np.mean(alike))
        shapes = [p(other_shape(rng, pool, n)) <= ALPHA for _ in range(repeat)]
        result["other_shape"][str(n)] = float(np.mean(shapes))
        result["power"][str(n)] = {
            str(factor): float(
                np.mean([p(differences(rng, pool, n, factor)) <= ALPHA for _ in range(repeat)])
            )
            for factor in (1.05, 1.1, 1.2, 1.5)
        }
    for n in (10, 20):
        families = [
            min(holm([p(differences(rng, pool, n, 1.0)) for _ in range(FAMILY)])) for _ in range(repeat // 4)
        ]
        result["family"][str(n)] = float(np.mean([least <= ALPHA for least in families]))
    return result


def run_coverage(only: Sequence[str], repeat: int, seed: int, scores: Path | None) -> None:
    """Simulate some populations; others stay in the file."""
    populations: Json = (load(COVERAGE) or {"populations": {}})["populations"]
    for name in only:
        if name == "domains":
            result = over_all(repeat, seed)
        elif name == "measured":
            from bench.quality.experiments import load_scores

            if scores is None:
                raise SystemExit("the population `measured` needs --scores")
            result = coverage(Measured(tuple(load_scores(scores))), repeat, seed)
        else:
            result = coverage({"moderate": MODERATE, "heavy": HEAVY}[name], repeat, seed)
        populations[name] = {"repeat": repeat, "figures": result}
        place = {"numpy": np.__version__, "python": platform.python_version()}
        save(COVERAGE, {"resamples": RESAMPLES, "seed": seed, **place, "populations": populations})


def main() -> None:
    """Command line."""
    every = ("moderate", "heavy", "domains", "measured")
    parser = command_line(__doc__)
    parser.add_argument("what", choices=("coverage", "power"))
    parser.add_argument("--repeat", type=int, help="samples; 400 of coverage, 1,000 of power")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=every, nargs="+", default=every[:3])
    parser.add_argument("--scores", type=Path, help="of `measured`, kept by experiments.py")
    args = parser.parse_args()
    if args.what == "coverage":
        run_coverage(args.only, args.repeat or 400, args.seed, args.scores)
        return
    repeat, begun = args.repeat or 1000, time.perf_counter()
    result = {"repeat": repeat, "seed": args.seed, "numpy": np.__version__, **simulate(repeat, args.seed)}
    save(POWER, result | {"seconds": round(time.perf_counter() - begun)})


if __name__ == "__main__":
    main()
