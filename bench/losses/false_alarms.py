"""How often a layer would be called an outlier though all are alike: why `gptq_hybrid.losses` has its bound.

    python -m bench.losses.false_alarms bench/losses/false_alarms.json

Log losses are drawn from one distribution (normal, or Student's t with 5 degrees of freedom) for the kinds of
modules of a 27B, and held against median + K robust standard deviations. The rule that an outlier is twice the
median besides is left out, so real false alarms are fewer.
"""

from __future__ import annotations

import numpy as np

from bench.arguments import command_line
from bench.results import save

# Layers of a kind, and how many kinds have so many.
_KINDS = {16: 4, 48: 3, 64: 3}
_BOUNDS, _DRAWS = (3.5, 4.0, 5.0, 6.0), 20000


def rate(layers: int, bound: float, distribution: str) -> float:
    """False alarms of one kind in a run."""
    random = np.random.default_rng(0)
    shape = (_DRAWS, layers)
    drawn = random.standard_normal(shape) if distribution == "normal" else random.standard_t(5, shape)
    middle = np.median(drawn, axis=1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(drawn - middle), axis=1, keepdims=True)
    return float(((drawn - middle) / spread > bound).sum(axis=1).mean())


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "out")
    out = parser.parse_args().out
    rates = {
        distribution: {
            str(bound): round(
                sum(count * rate(layers, bound, distribution) for layers, count in _KINDS.items()), 3
            )
            for bound in _BOUNDS
        }
        for distribution in ("normal", "t5")
    }
    save(out, {"draws": _DRAWS, "numpy": np.__version__, "false_alarms_a_run": rates})
    print(rates)


if __name__ == "__main__":
    main()
