"""The paired test of `qwen36 eval`: how often it shows a difference where there is none, and where there is one.

    python -m bench.quality.power [--repeat 1000] [--out bench/quality/power.json]

Documents come from the moderate population of `coverage.py`. Each checkpoint's KLD of a document is that of the
population times a log-normal factor of its own (standard deviation 0.3). Without a difference ("alike") the test
must reject in at most 5 % of the samples. "Other shape" has equal means too, but B is a tenth better on 9 documents
of 10 and 1.9 times as bad on the tenth: not the test's null hypothesis, and so the place to look for its limits.
"Family" is the chance that Holm's correction lets any of 15 domains without a difference through.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from bench.arguments import command_line
from bench.quality.coverage import MODERATE
from bench.results import Json, save
from gptq_hybrid.evaluate._compare import ALPHA, holm, sign_flip

NOISE, FAMILY = 0.3, 15


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


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--repeat", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("power.json"))
    args = parser.parse_args()
    begun = time.perf_counter()
    result = {"repeat": args.repeat, "seed": args.seed, "numpy": np.__version__}
    result |= simulate(args.repeat, args.seed)
    result["seconds"] = round(time.perf_counter() - begun)
    save(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
