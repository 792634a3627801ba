"""Two pictures of `results.json`. Colours of Okabe & Ito; what a colour says, a marker or a label says too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.quality.grid import BY_NAME, CODE, ENGLISH, LANGUAGES
from bench.quality.results import Results
from bench.quality.sizes import extra_bytes, layout_27b
from bench.results import Json
from bench.tables import number

_BLUE, _ORANGE, _GREEN, _PINK, _BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _where(results: Results) -> str:
    env = results.calls[0]["environment"]
    return f"{env['device']}, torch {env['torch']}, gptqmodel {env['gptqmodel']}"


def texts_picture(content: Json) -> Any:
    """Heat map: calibration text by held-out domain."""
    from matplotlib.colors import TwoSlopeNorm

    results = Results.of(content)
    usual = [
        r for r in results.group("text") if BY_NAME[r.name].text.length == 512 and BY_NAME[r.name].text.pack
    ]
    domains = (*ENGLISH, *CODE, *LANGUAGES)
    table = [[100 * results.domain_change(run, domain) for domain in domains] for run in usual]
    figure, axes = _figure(11.5, 0.5 * len(usual) + 1.7)
    image = axes.imshow(table, cmap="PuOr_r", norm=TwoSlopeNorm(0, vmin=-65, vmax=65), aspect="auto")
    for i, run in enumerate(usual):
        for j, domain in enumerate(domains):
            shown = (run.domains[domain].p_holm or 1.0) <= 0.05
            axes.text(
                j, i, number(table[i][j], "+.0f"), ha="center", va="center", fontsize=9,
                color="white" if abs(table[i][j]) > 42 else _BLACK, fontweight="bold" if shown else "normal",
            )  # fmt: skip
    axes.set_xticks(range(len(domains)), labels=domains)
    axes.set_yticks(range(len(usual)), labels=[run.name.removeprefix("static-") for run in usual])
    for edge in (1.5, 7.5):
        axes.axvline(edge, color=_BLACK, linewidth=1.2)
    axes.set(xlabel="held-out domain", ylabel="calibrated on")
    axes.set_title(
        "KLD against calibration on the mix, %; bold: difference shown (Holm over the 15 domains)\n"
        f"mini model, recipe static, {_where(results)}",
        fontsize=9,
    )
    figure.colorbar(image, ax=axes, label="%", fraction=0.03, pad=0.01)
    return figure


# Experiment: label, and where it stands from the point.
_LABELS: dict[str, tuple[str, tuple[int, int]]] = {
    "static-gdn-out-8": ("GDN out", (-8, -14)),
    "static-gdn-in-8": ("GDN in", (7, 4)),
    "static-gdn-8": ("GDN in and out", (7, 4)),
    "static-attention-8": ("attention", (5, 6)),
    "static-down-8": ("MLP down", (7, 4)),
    "static-gate-up-8": ("MLP gate, up", (-66, -12)),
    "static-mlp-8": ("all MLP", (-46, 4)),
    "static-gdn-out-16": ("GDN out", (-14, 8)),
    "static-attention-16": ("attention", (8, -4)),
    "static-gdn-in-16": ("GDN in", (8, -3)),
    "static-gdn-16": ("GDN in and out", (-84, -12)),
    "static-g64": ("groups of 64", (7, 4)),
    "static-g32": ("groups of 32", (7, -10)),
    "static-mse": ("search", (7, 4)),
    "mse-out-attention-8": ("search, GDN out, attention", (7, -12)),
    "mse-compact": ("search, both heads in 8 bit", (-4, 9)),
}


def modules_picture(content: Json) -> Any:
    """KLD against bytes at the 27B's sizes, from `static`."""
    results = Results.of(content)
    figure, axes = _figure(10, 6)
    sets: tuple[tuple[str, str, str, Callable[[str], bool]], ...] = (
        ("modules in 8 bit", _BLUE, "o", lambda n: n.endswith("-8") and not n.startswith("mse")),
        ("modules in BF16", _PINK, "v", lambda n: n.endswith("-16")),
        ("smaller groups", _ORANGE, "^", lambda n: n in ("static-g64", "static-g32")),
        ("scale search (mse), and with it", _GREEN, "s", lambda n: "mse" in n),
    )
    for label, colour, marker, belongs in sets:
        for i, name in enumerate(filter(belongs, _LABELS)):
            text, offset = _LABELS[name]
            x = extra_bytes(name, "static", layout_27b()) / 1e9
            value, low, high = (100 * v for v in results.against_static(results.runs[name])[:3])
            axes.errorbar(
                x, value, yerr=[[value - low], [high - value]], color=colour, marker=marker, linestyle="none",
                capsize=2, label=None if i else label,
            )  # fmt: skip
            axes.annotate(text, (x, value), offset, textcoords="offset points", fontsize=8, color=colour)
    axes.plot(0, 0, marker="*", markersize=11, color=_BLACK, linestyle="none", label="static")
    axes.axhline(0, color=_BLACK, linewidth=0.6, linestyle=":")
    axes.margins(y=0.1)
    axes.set_xlabel("more bytes than static at the 27B's sizes, GB (computed from the layout)")
    axes.set_ylabel("KLD of the mini model against static, %")
    axes.set_title(
        "What bytes buy: KLD measured on the mini model (13.8 M parameters), 659 held-out documents,\n"
        f"bars 95 % over documents; bytes computed for the 27B; {_where(results)}",
        fontsize=9,
    )
    axes.legend(fontsize=8, loc="upper right")
    axes.grid(alpha=0.3)
    return figure
