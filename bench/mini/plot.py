"""Draw `training.png` from `training.json`. Needs matplotlib.

python -m bench.mini.plot
"""

from __future__ import annotations

import json
from pathlib import Path

_HERE = Path(__file__).parent


def main() -> None:
    """Loss curves on the left, held-out loss by domain on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    content = json.loads((_HERE / "training.json").read_text())
    summary, curve, checks = content["summary"], content["curve"], content["checks"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True)
    tokens = [point["tokens"] / 1e6 for point in curve]
    for i, label in enumerate(("next token", "MTP, first draft", "MTP, second draft")):
        left.plot(tokens, [point["nats"][i] for point in curve], label=label, linewidth=0.9)
    left.set(title="Training loss", xlabel="million tokens", ylabel="nats per token", ylim=(0.5, 7))
    seen = [check["tokens"] / 1e6 for check in checks]
    colours = plt.get_cmap("tab20").colors
    for colour, domain in zip(colours, content["heldout"], strict=False):
        nats = [check["nats"][domain] for check in checks]
        right.plot(seen, nats, label=domain, color=colour, marker=".", linewidth=0.9)
    right.set(title="Held-out loss by domain, next token (first 64 rows of each)", xlabel="million tokens")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=2)
    figure.suptitle(
        f"{summary['parameters'] / 1e6:.1f} M parameters, {summary['tokens'] / 1e6:.0f} M tokens in "
        f"{summary['seconds']:.0f} s on one {summary['gpu']}"
    )
    figure.tight_layout()
    figure.savefig(_HERE / "training.png", dpi=110)


if __name__ == "__main__":
    main()
