"""Tables and pictures of the page; written by `python -m bench.pages quality`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import ttest_1samp

from bench.pages import Page
from bench.quality.grid import BY_NAME, CODE, ENGLISH, LANGUAGES
from bench.quality.results import FILE, Estimate, Results, Run
from bench.quality.sizes import extra_bytes, layout_27b, layout_mini, size_of
from bench.results import Json
from bench.tables import Column, at, number, table, where

_KINDS = {"English": ENGLISH, "code": CODE, "other languages": LANGUAGES}
_NAME = Column("experiment", lambda run: f"`{run.name}`")
_KLD = Column("KLD, 10⁻³ nats a token", lambda run: _interval(run.kld, ".2f", 1000))
_BITS = Column("bits a weight", lambda run: size_of(BY_NAME[run.name], layout_27b()).bits, ".2f")


def _interval(estimate: Estimate, spec: str, factor: float, unit: str = "") -> str:
    value, low, high = (number(factor * x, spec) for x in estimate[:3])
    return f"{value}{unit} [{low}, {high}]"


def _share(change: Estimate, digits: int = 1) -> str:
    """A change in percent, with a digit more where its interval is narrow."""
    return _interval(change, f"+.{2 if 0 < change.high - change.low < 0.002 else digits}f", 100, " %")


def _percent(share: float, digits: int = 1) -> str:
    return f"{number(100 * share, f'+.{digits}f')} %"


def _p(value: float) -> str:
    return f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def _change(results: Results, title: str, measure: str = "kld_mean", digits: int = 1) -> Column:
    """Change against the control; empty for the control, "the same" where it could not differ."""

    def value(run: Run) -> str | None:
        if not run.against:
            return None
        if measure == "kld_mean" and not run.compared:
            return "the same"
        return _share(results.change(run, measure), digits)

    return Column(title, value)


def _p_all(results: Results) -> Column:
    return Column("p, all", lambda run: results.corrected.get(run.name), _p)


def _bytes(run: Run) -> int:
    return extra_bytes(run.name, run.against or "", layout_27b())


_GB = Column("27B, computed", _bytes, lambda count: f"{number(count / 1e9, '+.2f')} GB")


def calls(content: Json) -> str:
    """Where each figure came from, and what came out when a control was run once more."""
    results = Results.of(content)

    def again(number_: int) -> str:
        runs = [run for runs in results.again.values() for run in runs if run.call == number_]
        changes = (_percent(run.kld.value / results.runs[run.name].kld.value - 1, 2) for run in runs)
        return ", ".join(f"`{run.name}` {c}" for run, c in zip(runs, changes, strict=True)) or "none"

    rows = []
    for i, call in enumerate(results.calls):
        env = call["environment"]
        own = sum(run.call == i for run in results.runs.values())
        versions = ", ".join(f"{key} {env[key]}" for key in ("torch", "transformers", "gptqmodel"))
        rows.append([str(i + 1), f"{env['device']}; {versions}", str(own), again(i)])
    titles = ["call", "where", "experiments first run in it", "run again: KLD against the first"]
    return table(titles, rows, f"{len(results.corrected)} comparisons of KLD")


def methods(content: Json) -> str:
    """Every method, best first."""
    results = Results.of(content)
    columns = [
        _NAME, _KLD, _change(results, "against `static`"),
        Column("p", lambda run: run.differences["kld_mean"].p if run.against else None, _p), _p_all(results),
        Column("top-1", lambda run: run.figures["top1"], lambda x: f"{100 * x:.2f} %"),
        Column("perplexity ratio", lambda run: run.figures["perplexity_ratio"], ".4f"),
        Column("tokens a step", lambda run: run.figures["acceptance_length"], ".3f"), _BITS,
    ]  # fmt: skip
    return table(columns, sorted(results.group("method"), key=lambda run: run.kld.value))


def seeds(content: Json) -> str:
    """Methods over calibration seeds: mean of the ratios to `static` with the same seed, and its t interval."""
    results = Results.of(content)
    static = [run.kld.value for run in results.seeds("static")]
    spread = f"deviation {100 * stdev(static) / mean(static):.1f} %"
    rows = [["`static`", *(f"{1000 * value:.2f}" for value in static), spread, ""]]
    for method in ("static-mse", "group-aware"):
        runs = results.seeds(method)
        ratios = [run.kld.value / results.same_seed(run).kld.value - 1 for run in runs]
        test = ttest_1samp(ratios, 0.0)
        over = _interval(Estimate(mean(ratios), *test.confidence_interval(0.95)), "+.1f", 100, " %")
        cells = (f"{1000 * r.kld.value:.2f} ({_percent(x)})" for r, x in zip(runs, ratios, strict=True))
        p = float(test.pvalue)
        rows.append([f"`{method}`", *cells, over, f"{p:.1e}" if p < 1e-3 else _p(p)])
    columns = [f"seed {seed}" for seed in range(len(static))]
    return table(["KLD, 10⁻³ nats a token", *columns, "against `static`, same seed", "p"], rows)


def gptaq(content: Json) -> str:
    """GPTAQ on a CPU, on fewer documents and rows than the rest."""
    results = Results.of(content)
    columns = [
        _NAME, Column("control", lambda run: run.against and f"`{run.against}`"), _KLD,
        _change(results, "KLD against control"),
        Column("p", lambda run: run.differences["kld_mean"].p if run.against else None, _p),
        _change(results, "tokens a step against control", "acceptance_length", 2),
    ]  # fmt: skip
    (call,) = results.calls
    documents, tokens = map(sum, zip(*call["domains"].values(), strict=True))
    return table(
        columns,
        results.runs.values(),
        f"{where(call['environment'])}; {documents} documents, {tokens:,} tokens",
    )


def texts(content: Json) -> str:
    """Calibration texts by kind of held-out text."""
    results = Results.of(content)
    domains = list(results.calls[0]["domains"])

    def extreme(pick: Callable[..., str]) -> Callable[[Run], str]:
        def value(run: Run) -> str:
            domain = pick(domains, key=lambda d: results.domain_change(run, d))
            return f"{domain} {_percent(results.domain_change(run, domain), 0)}"

        return value

    def over(kind: tuple[str, ...]) -> Callable[[Run], str]:
        return lambda run: _percent(mean(results.domain_change(run, domain) for domain in kind))

    columns = [
        _NAME, _change(results, "KLD against the mix"), _p_all(results),
        *(Column(name, over(kind)) for name, kind in _KINDS.items()),
        Column("worst domain", extreme(max)), Column("best domain", extreme(min)),
    ]  # fmt: skip
    return table(columns, _usual(results))


def _usual(results: Results) -> list[Run]:
    """The texts in rows of 512 tokens, packed."""
    texts = {run.name: BY_NAME[run.name].text for run in results.group("text")}
    return [results.runs[name] for name, text in texts.items() if text.length == 512 and text.pack]


def texts_picture(content: Json) -> Any:
    """Heat map: calibration text by held-out domain."""
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    results = Results.of(content)
    usual = _usual(results)
    domains = (*ENGLISH, *CODE, *LANGUAGES)
    table = [[100 * results.domain_change(run, domain) for domain in domains] for run in usual]
    figure = Figure(figsize=(11.5, 0.5 * len(usual) + 1.7), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="PuOr_r", norm=TwoSlopeNorm(0, vmin=-65, vmax=65), aspect="auto")
    for i, run in enumerate(usual):
        for j, domain in enumerate(domains):
            shown = (run.domains[domain].p_holm or 1.0) <= 0.05
            axes.text(
                j, i, number(table[i][j], "+.0f"), ha="center", va="center", fontsize=9,
                color="white" if abs(table[i][j]) > 42 else "black", fontweight="bold" if shown else "normal",
            )  # fmt: skip
    axes.set_xticks(range(len(domains)), labels=domains)
    axes.set_yticks(range(len(usual)), labels=[run.name.removeprefix("static-") for run in usual])
    for edge in (1.5, 7.5):
        axes.axvline(edge, color="black", linewidth=1.2)
    axes.set(xlabel="held-out domain", ylabel="calibrated on")
    env = results.calls[0]["environment"]
    axes.set_title(
        "KLD against calibration on the mix, %; bold: difference shown (Holm over the 15 domains)\n"
        f"mini model, recipe static, {env['device']}, gptqmodel {env['gptqmodel']}",
        fontsize=9,
    )
    figure.colorbar(image, ax=axes, label="%", fraction=0.03, pad=0.01)
    return figure


def rows(content: Json) -> str:
    """Amount of calibration text, and the same text in rows of other lengths, and unpacked."""
    results = Results.of(content)
    widest = max(linear.in_features for linear in layout_mini().quantized)
    others = ("static-mix-64x2048", "static-mix-1024x128", "static-mix-unpacked")
    amounts = sorted(results.group("samples"), key=lambda run: run.facts["calibration_tokens"])

    def amount(run: Run) -> str:
        text = BY_NAME[run.name].text
        return f"{text.samples} × {text.length}{'' if text.pack else ', not packed'}"

    columns = [
        _NAME, Column("asked for", amount),
        Column("tokens", lambda run: run.facts["calibration_tokens"], ","),
        Column(f"by {widest} inputs", lambda run: run.facts["calibration_tokens"] / widest, ".0f"),
        _KLD, _change(results, "against `static`"), _p_all(results),
        _change(results, "tokens a step against `static`", "acceptance_length", 2),
    ]  # fmt: skip
    return table(columns, [*amounts, results.runs["static"], *(results.runs[name] for name in others)])


def modules(content: Json) -> str:
    """Kinds of module in more bits, and smaller groups: what that takes off the KLD, and by the byte."""
    results = Results.of(content)

    def gain(mini: bool) -> Callable[[Run], float | None]:
        def value(run: Run) -> float | None:
            big, small = (
                extra_bytes(run.name, run.against or "", at) for at in (layout_27b(), layout_mini())
            )
            taken = -100 * results.change(run).value
            return taken / (small / 1e6 if mini else big / 1e9) if big > 0 and small > 0 else None

        return value

    columns = [
        _NAME, _change(results, "KLD against `static`"), _p_all(results), _GB,
        Column("gain a GB, 27B's shapes", gain(mini=False), lambda x: f"{x:.1f} %"),
        Column("gain a MB, mini's shapes", gain(mini=True), lambda x: f"{x:.0f} %"), _BITS,
    ]  # fmt: skip
    return table(columns, [*results.group("modules"), results.runs["static-g64"], results.runs["static-g32"]])


def heads(content: Json) -> str:
    """Output head and MTP head by precision, on `static`."""
    results = Results.of(content)
    columns = [
        _NAME, _change(results, "KLD against `static`", digits=2),
        _change(results, "tokens a step against `static`", "acceptance_length", 2),
        Column("p", lambda run: run.differences["acceptance_length"].p, _p), _GB,
    ]  # fmt: skip
    return table(columns, results.group("head"))


def recipes(content: Json) -> str:
    """The combinations, against `static` of their call and beside `static-mse`."""
    results = Results.of(content)

    def searched(run: Run) -> str | None:
        base = results.in_call("static-mse", run.call)
        return None if base.name == run.name else _percent(run.kld.value / base.kld.value - 1)

    def _gib(run: Run) -> str:
        return f"{size_of(BY_NAME[run.name], layout_27b()).total / 2**30:.2f} GiB"

    columns = [
        _NAME, Column("control", lambda run: f"`{run.against}`"), _KLD, _change(results, "KLD against control"),
        _p_all(results), Column("against `static-mse`, values alone", searched),
        _change(results, "tokens a step against control", "acceptance_length", 2),
        Column("27B, computed", _gib), _BITS,
    ]  # fmt: skip
    return table(columns, [results.runs["static-mse"], *results.group("recipe")])


def tuned(result: Json) -> str:
    """`tuned` beside the checkpoint that it was made of: `qwen36 eval TUNED STATIC-MSE`."""
    (pair,) = result["comparisons"]
    differences = {d["measure"]: d for d in pair["overall"]["differences"]}

    def change(row: Json) -> str | None:
        ratio = pair["kld_ratio"]
        shares = Estimate(*(ratio[key] - 1 for key in ("value", "low", "high")))
        return _share(shares) if row["name"] == pair["a"] else None

    def p(measure: str) -> Callable[[Json], float | None]:
        return lambda row: differences[measure]["p"] if row["name"] == pair["a"] else None

    def estimate(*path: str) -> Callable[[Json], Estimate]:
        return lambda row: Estimate(*(at(row, (*path, key)) for key in ("value", "low", "high")))

    columns = [
        Column("checkpoint", lambda row: f"`{row['name']}`"),
        Column("KLD, 10⁻³ nats a token", estimate("overall", "kld_mean"), lambda x: _interval(x, ".2f", 1000)),
        Column("against `static-mse`", change), Column("p", p("kld_mean"), _p),
        Column("top-1", ("overall", "top1", "value"), ".2%"),
        Column(
            "tokens a step", estimate("overall", "acceptance", "length"), lambda x: _interval(x, ".3f", 1)
        ),
        Column("p", p("acceptance_length"), _p),
    ]  # fmt: skip
    s = result["settings"]
    return table(
        columns,
        result["checkpoints"],
        f"{where(result['environment'])}; {s['documents']} documents, {s['tokens']:,} tokens",
    )


def tuned_domains(result: Json) -> str:
    """The change of each domain's KLD, and whether it is shown after correction for 15 domains."""
    own, control = (
        {d["domain"]: d["kld_mean"]["value"] for d in c["domains"]} for c in result["checkpoints"]
    )
    shown = {
        part["domain"]: d["p_holm"] <= 0.05
        for part in result["comparisons"][0]["domains"]
        for d in part["differences"]
        if d["measure"] == "kld_mean"
    }
    cells = (f"{_percent(own[d] / control[d] - 1)}{'' if shown[d] else ' (not shown)'}" for d in own)
    return table(list(own), [list(cells)])


def served(result: Json) -> str:
    """Two recipes and the original in a stock vLLM."""
    columns = [
        Column("checkpoint", "checkpoint"),
        Column("GDN in, MLP", ("kernels", "in_proj_qkvz")),
        Column("GDN out", ("kernels", "out_proj")),
        Column("attention", ("kernels", "qkv_proj")),
        Column("`lm_head`", ("kernels", "lm_head")),
        Column("tokens a step", "acceptance_length", ".2f"),
    ]
    return table(columns, result["served"], f"{where(result['environment'])}; {result['prompts']} prompts")


def coverage(result: Json) -> str:
    """How many of 100 intervals hold the truth, by figure and kind of interval."""
    populations = result["populations"]
    kinds = list(populations["moderate"]["figures"]["KLD mean"])

    def cell(kind: str) -> Callable[[str], str]:
        def value(figure: str) -> str:
            several = [populations[name]["figures"][figure].get(kind, {}) for name in ("moderate", "heavy")]
            return ", ".join(" ".join(f"{100 * of[n][0]:.0f}" for n in of) for of in several if of)

        return value

    rows = populations["moderate"]["figures"]
    return table([Column("figure", str), *(Column(kind, cell(kind)) for kind in kinds)], rows)


def power(result: Json) -> str:
    """How often the paired test shows a difference, by documents and by what there is."""
    factors = {f: f"KLD {100 * float(f) - 100:.0f} % higher" for f in result["power"]["6"]}
    columns = [
        Column("documents", str),
        Column("none there", lambda n: result["alike"][n], ".1%"),
        *(Column(title, lambda n, f=f: result["power"][n][f], ".1%") for f, title in factors.items()),
        Column("equal means, other shape", lambda n: result["other_shape"][n], ".0%"),
        Column("any of 15 domains, Holm", lambda n: result["family"].get(n), ".1%"),
    ]
    return table(columns, result["alike"], f"{result['repeat']:,} samples each")


_HERE = Path(__file__).parent
PAGE = Page(
    _HERE / "README.md",
    {
        **{t.__name__: (t, FILE) for t in (calls, methods, seeds, texts, rows, modules, heads, recipes)},
        "gptaq": (gptaq, _HERE / "gptaq.json"),
        **{t.__name__: (t, _HERE / "tuned.json") for t in (tuned, tuned_domains)},
        "coverage": (coverage, _HERE / "coverage.json"),
        "power": (power, _HERE / "power.json"),
        "served": (served, _HERE / "served-vllm-0.26.json"),
    },
    {"texts.png": (texts_picture, FILE)},
)
