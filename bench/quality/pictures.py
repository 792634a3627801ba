"""Pictures from `results.json`. Colours of Okabe & Ito; what a colour says, a marker or a label says too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from bench.quality.changes import against_static, change
from bench.quality.grid import BY_NAME, CODE, ENGLISH, LANGUAGES
from bench.quality.results import ALL, Results
from bench.quality.sizes import extra_bytes, layout_27b, layout_mini

BLUE, ORANGE, GREEN, PINK, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000"
_SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
_MINI = "mini model (13.8 M parameters), 659 held-out documents, bars: 95 % over documents"


def save(figure: Figure, path: Path) -> None:
    """Write a PNG that appears only once it is whole."""
    temporary = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.png")
    try:
        figure.savefig(temporary, dpi=110)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def _where(results: Results) -> str:
    env = results.calls[0]["environment"]
    return f"{env['device']}, torch {env['torch']}, gptqmodel {env['gptqmodel']}"


def _bars(axes: Axes, x: float, found: Sequence[float], scale: float = 1.0, **style: Any) -> None:
    value, low, high = (scale * v for v in found)
    style = {"linestyle": "none", "markersize": 6, "capsize": 2, **style}
    axes.errorbar(x, value, yerr=[[value - low], [high - value]], **style)


def methods(results: Results) -> Figure:
    """Mean KLD of every method; right: the same without plain rounding."""
    found = sorted((r for r in results.runs.values() if r.group == "method"), key=lambda r: -r.kld.value)
    figure, (axes,) = _figure(9.5, 0.31 * len(found) + 1.6)
    for i, run in enumerate(found):
        value, low, high = (1000 * x for x in run.kld)
        extra = BY_NAME[run.name]
        kind = (
            (PINK, "D", "rounding to nearest")
            if extra.rtn is not None
            else (GREEN, "s", "scale search (mse)")
            if "mse" in (extra.settings or {})
            else (SKY, "^", "smaller groups: larger checkpoint")
            if (extra.settings or {}).get("group_size") != 128
            else (BLUE, "o", "act order, damping, FOEM")
        )
        colour, marker, label = kind
        axes.errorbar(
            value,
            i,
            xerr=[[value - low], [high - value]],
            color=colour,
            marker=marker,
            capsize=2,
            label=label,
        )
        axes.annotate(f"{value:.1f}", (high, i), (5, 0), textcoords="offset points", va="center", fontsize=8)
    control = 1000 * results.runs["static"].kld.value
    axes.axvline(control, color=BLACK, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks([20, 25, 30, 40, 50, 60], labels=["20", "25", "30", "40", "50", "60"])
    axes.minorticks_off()
    axes.set_yticks(range(len(found)), labels=[run.name for run in found])
    axes.set_xlabel("mean KLD to BF16, 10⁻³ nats a token (logarithmic; dotted: static)")
    axes.set_title(f"4-bit methods on the {_MINI}\n{_where(results)}", fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), fontsize=8, loc="upper right")
    axes.grid(axis="x", alpha=0.3)
    return figure


def texts(results: Results) -> Figure:
    """Heat map: calibration text by held-out domain."""
    runs = [
        r for r in results.runs.values() if r.group == "text" and BY_NAME[r.name].text.length == 512
        and BY_NAME[r.name].text.pack
    ]  # fmt: skip
    domains = (*ENGLISH, *CODE, *LANGUAGES, ALL)
    table = [[100 * change(run, results, domain=d).value for d in domains] for run in runs]
    figure, (axes,) = _figure(11.5, 0.5 * len(runs) + 1.7)
    image = axes.imshow(
        table, cmap="PuOr_r", norm=TwoSlopeNorm(0, vmin=-65, vmax=65), aspect="auto", interpolation="nearest"
    )
    for i, run in enumerate(runs):
        for j, domain in enumerate(domains):
            shown = run.differences["kld_mean"][domain].p_holm <= 0.05
            value = table[i][j]
            axes.text(
                j,
                i,
                f"{value:+.0f}".replace("-", "−") if abs(value) >= 0.5 else "0",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if abs(value) > 42 else BLACK,
                fontweight="bold" if shown else "normal",
            )
    axes.set_xticks(range(len(domains)), labels=[*domains[:-1], "all"])
    axes.set_yticks(range(len(runs)), labels=[run.name.removeprefix("static-") for run in runs])
    for edge in (1.5, 7.5, 14.5):
        axes.axvline(edge, color=BLACK, linewidth=1.2)
    axes.set_xlabel("held-out domain")
    axes.set_ylabel("calibrated on")
    axes.set_title(
        "KLD against calibration on the mix, %; bold: difference shown (Holm over the 15 domains)\n"
        f"mini model, recipe static, {_where(results)}",
        fontsize=9,
    )
    figure.colorbar(image, ax=axes, label="%", fraction=0.03, pad=0.01)
    return figure


def tokens(results: Results) -> Figure:
    """KLD by amount of calibration text; seeds show what another drawing of rows does."""
    runs = [results.runs["static"], *(r for r in results.runs.values() if r.group == "samples")]
    runs.sort(key=lambda run: run.facts["calibration_tokens"])
    widest = max(linear.in_features for linear in layout_mini().quantized)
    figure, (axes,) = _figure(8, 4.4)
    x = [run.facts["calibration_tokens"] for run in runs]
    axes.plot(x, [1000 * run.kld.value for run in runs], color=BLUE, linewidth=0.8)
    for count, run in zip(x, runs, strict=True):
        _bars(
            axes, count, run.kld, 1000, color=BLUE, marker="o", label=None if run is not runs[0] else "seed 0"
        )
    seeds = [r for n, r in results.runs.items() if n.startswith("static-seed-")]
    axes.plot(
        [r.facts["calibration_tokens"] for r in seeds], [1000 * r.kld.value for r in seeds], color=ORANGE,
        marker="x", markersize=9, linestyle="none", zorder=4, label="seeds 1 to 3",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(ticks := [2_500, 10_000, 40_000, 130_000, 450_000], labels=[f"{x:,}" for x in ticks])
    axes.minorticks_off()
    axes.set_xlabel("calibration tokens (logarithmic)")
    above = axes.secondary_xaxis("top", functions=(lambda v: v / widest, lambda v: v * widest))
    above.set_xticks(ratios := [5, 20, 50, 200, 700], labels=[str(x) for x in ratios])
    above.minorticks_off()
    above.set_xlabel(f"tokens for each input of the widest module ({widest} inputs)")
    axes.set_ylabel("mean KLD, 10⁻³ nats a token")
    axes.set_title(f"Amount of calibration text (mix), recipe static, {_where(results)}\n{_MINI}", fontsize=9)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
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
    "all-8": ("all", (7, 4)),
    "static-gdn-out-16": ("GDN out", (-14, 8)),
    "static-attention-16": ("attention", (8, -4)),
    "static-gdn-in-16": ("GDN in", (8, -3)),
    "static-gdn-16": ("GDN in and out", (-84, -12)),
    "static-g64": ("groups of 64", (7, 4)),
    "static-g32": ("groups of 32", (7, -10)),
    "static-mse": ("search", (7, 4)),
    "mse-out-attention-8": ("search, GDN out, attention", (7, -12)),
    "mse-mixers-8": ("search, GDN, attention", (7, 4)),
    "mse-compact": ("search, both heads in 8 bit", (-4, 9)),
}


def modules(results: Results) -> Figure:
    """KLD against bytes at the 27B's sizes, from `static`."""
    figure, (axes,) = _figure(10, 6)
    sets: tuple[tuple[str, str, str, Callable[[str], bool]], ...] = (
        ("modules in 8 bit", BLUE, "o", lambda n: n.endswith("-8") and not n.startswith("mse")),
        ("modules in BF16", PINK, "v", lambda n: n.endswith("-16")),
        ("smaller groups", ORANGE, "^", lambda n: n in ("static-g64", "static-g32")),
        ("scale search (mse), and with it", GREEN, "s", lambda n: "mse" in n),
    )
    for label, colour, marker, wanted in sets:
        for i, name in enumerate(n for n in _LABELS if wanted(n) and n in results.runs):
            run, (text, offset) = results.runs[name], _LABELS[name]
            x = extra_bytes(name, "static", layout_27b()) / 1e9
            found = [100 * v for v in against_static(run, results)]
            _bars(axes, x, found, color=colour, marker=marker, label=None if i else label)
            axes.annotate(text, (x, found[0]), offset, textcoords="offset points", fontsize=8, color=colour)
    axes.plot(0, 0, marker="*", markersize=11, color=BLACK, linestyle="none", label="static")
    axes.axhline(0, color=BLACK, linewidth=0.6, linestyle=":")
    axes.margins(y=0.1)
    axes.set_xlabel("more bytes than static at the 27B's sizes, GB (computed from the layout)")
    axes.set_ylabel("KLD of the mini model against static, %")
    axes.set_title(
        f"What bytes buy: KLD measured on the {_MINI};\nbytes computed for the 27B; {_where(results)}",
        fontsize=9,
    )
    axes.legend(fontsize=8, loc="upper right")
    axes.grid(alpha=0.3)
    return figure


def heads(results: Results) -> Figure:
    """MTP head: tokens a step by format. Output head: KLD by format."""
    figure, (left, right) = _figure(11, 4.2, 2)
    mtp = ("mtp-w8", "mtp-fp8", "mtp-w4-but-fc", "mtp-w4", "mtp-w4-plain")
    names = ("8 bit", "FP8", "4 bit but\nmtp.fc", "4 bit", "4 bit,\nplain RTN")
    for i, name in enumerate(mtp):
        found = [100 * v for v in change(results.runs[name], results, "acceptance_length")]
        _bars(left, i, found, color=BLUE, marker="o")
        text = f"{found[0]:.2f}".replace("-", "−")
        left.annotate(text, (i, found[0]), (8, 0 if i else -7), va="center", **_SMALL)
    saved = [-extra_bytes(name, "static", layout_27b()) / 1e9 for name in mtp]
    left.set_xticks(range(len(mtp)), labels=[f"{n}\n({s:.2f} GB)" for n, s in zip(names, saved, strict=True)],
                    fontsize=8)  # fmt: skip
    left.set(ylabel="tokens a step (two drafts) against a BF16 head, %", title="MTP head", xlim=(-0.5, 4.8))
    formats = ("lm-head-w8", "lm-head-fp8", "lm-head-w4")
    for i, name in enumerate(formats):
        found = [100 * v for v in change(results.runs[name], results)]
        _bars(right, i, found, color=ORANGE, marker="s")
        right.annotate(f"+{found[0]:.2f}", (i, found[0]), (8, 0), va="center", **_SMALL)
    saved = [-extra_bytes(name, "static", layout_27b()) / 1e9 for name in formats]
    right.set_yscale("log")
    right.set_ylim(0.1, 100)
    right.set_yticks([0.1, 1, 10, 100], labels=["0.1", "1", "10", "100"])
    right.set_xticks(range(3), labels=[f"{n}\n({s:.2f} GB)" for n, s in zip(("8 bit", "FP8", "4 bit"), saved,
                     strict=True)], fontsize=8)  # fmt: skip
    right.set(ylabel="KLD against a BF16 head, % (logarithmic)", title="output head", xlim=(-0.5, 2.6))
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
        axes.axhline(0, color=BLACK, linewidth=0.6, linestyle=":")
    figure.suptitle(
        f"Heads on top of static, {_MINI}; {_where(results)}\nin brackets: saved at the 27B's sizes, computed",
        fontsize=9,
    )
    return figure


PICTURES: dict[str, Callable[[Results], Figure]] = {
    "methods": methods,
    "texts": texts,
    "tokens": tokens,
    "modules": modules,
    "heads": heads,
}
