"""Markdown tables from `results.json`: what `report.py` writes into the README."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from scipy.stats import ttest_1samp

from bench.quality.changes import (
    GPTAQ,
    change,
    corrected,
    every,
    markdown,
    missing,
    p_value,
    percent,
    relative,
    same_seed,
    seed_names,
    small_runs,
    tested,
)
from bench.quality.grid import BY_NAME, CODE, ENGLISH, LANGUAGES
from bench.quality.results import ALL, Results, Run
from bench.quality.sizes import Size, extra_bytes, layout_27b, layout_mini, size_of

KINDS = {"English": ENGLISH, "code": CODE, "other languages": LANGUAGES}


def _kld(run: Run) -> str:
    value, low, high = (f"{1000 * x:.2f}" for x in run.kld)
    return f"{value} [{low}, {high}]"


def _size(run: Run) -> Size:
    return size_of(BY_NAME[run.name], layout_27b())


def _name(run: Run) -> str:
    return f"`{run.name}`"


def _group(results: Results, *groups: str) -> list[Run]:
    return [run for run in results.runs.values() if run.group in groups]


def methods(results: Results) -> str:
    """Every method, best first."""
    rows = []
    for run in sorted(_group(results, "method"), key=lambda run: run.kld.value):
        base = results.control(run).kld.value if run.against else 1.0
        difference = run.differences["kld_mean"][ALL] if run.against else None
        rows.append(
            [
                _name(run),
                _kld(run),
                relative(difference, base) if difference else "",
                p_value(difference.p) if difference else "",
                p_value(corrected(results)[run.name]) if difference else "",
                f"{100 * run.figures['top1'][ALL].value:.2f} %",
                f"{run.figures['perplexity_ratio'][ALL].value:.4f}",
                f"{run.figures['acceptance_length'][ALL].value:.3f}",
                f"{_size(run).bits:.2f}",
            ]
        )
    head = ["method", "KLD, 10⁻³ nats a token", "against `static`", "p", "p, all", "top-1", "perplexity ratio",
            "tokens a step", "bits a weight"]  # fmt: skip
    return markdown(head, rows)


def seeds(results: Results) -> str:
    """Methods over calibration seeds: mean of the ratios to `static` with the same seed, and its t interval."""
    control = [results.runs[name] for name in seed_names(results, "static")]
    values = [run.kld.value for run in control]
    spread = f"deviation {100 * stdev(values) / mean(values):.1f} %"
    found = [["`static`", *(f"{1000 * value:.2f}" for value in values), spread, ""]]
    for method in ("static-mse", "group-aware"):
        runs = [results.runs[name] for name in seed_names(results, method)]
        ratios = [run.kld.value / same_seed(run, results).kld.value - 1 for run in runs]
        test = ttest_1samp(ratios, 0.0)
        ends = [percent(x).removesuffix(" %") for x in test.confidence_interval(0.95)]
        p = f"{test.pvalue:.1e}" if test.pvalue < 1e-3 else p_value(float(test.pvalue))
        cells = (
            f"{1000 * run.kld.value:.2f} ({percent(ratio)})" for run, ratio in zip(runs, ratios, strict=True)
        )
        found.append([f"`{method}`", *cells, f"{percent(mean(ratios))} [{ends[0]}, {ends[1]}]", p])
    head = [f"seed {seed}" for seed in range(len(control))]
    return markdown(["KLD, 10⁻³ nats a token", *head, "against `static`, same seed", "p"], found)


def _domain_mean(run: Run, results: Results, domains: Sequence[str]) -> str:
    """Mean change over domains; no interval, as the file has them one domain at a time."""
    return percent(mean(change(run, results, domain=d).value for d in domains))


def texts(results: Results) -> str:
    """Calibration texts by kind of held-out text."""
    rows = []
    for run in _group(results, "text"):
        text = BY_NAME[run.name].text
        if (text.samples, text.length, text.pack) != (256, 512, True):
            continue
        base = results.control(run).kld.value
        rows.append(
            [
                _name(run),
                relative(run.differences["kld_mean"][ALL], base),
                p_value(corrected(results)[run.name]),
                *(_domain_mean(run, results, domains) for domains in KINDS.values()),
                _extreme(run, results, max),
                _extreme(run, results, min),
            ]
        )
    return markdown(
        ["calibration text", "KLD against the mix", "p, all", *KINDS, "worst domain", "best domain"], rows
    )


def _extreme(run: Run, results: Results, pick: object) -> str:
    domains = [d for d in results.domains if d != ALL]
    key = lambda d: change(run, results, domain=d).value  # noqa: E731
    domain = max(domains, key=key) if pick is max else min(domains, key=key)
    return f"{domain} {percent(key(domain), 0)}"


def tokens(results: Results) -> str:
    """Amount of calibration text; 205 tokens an input of the widest module at the control."""
    runs = [results.runs["static"], *_group(results, "samples")]
    widest = max(linear.in_features for linear in layout_mini().quantized)
    rows = []
    for run in sorted(runs, key=lambda run: run.facts["calibration_tokens"]):
        count = run.facts["calibration_tokens"]
        difference = run.differences.get("kld_mean")
        rows.append(
            [
                _name(run),
                f"{count:,}",
                f"{count / widest:.0f}",
                _kld(run),
                relative(difference[ALL], results.control(run).kld.value) if difference else "",
                p_value(corrected(results)[run.name]) if difference else "",
            ]
        )
    head = [
        "calibration",
        "tokens",
        f"by {widest} inputs",
        "KLD, 10⁻³ nats a token",
        "against `static`",
        "p, all",
    ]
    return markdown(head, rows)


def rows(results: Results) -> str:
    """The same text in rows of other lengths, and unpacked."""
    found = []
    for name in ("static", "static-mix-64x2048", "static-mix-1024x128", "static-mix-unpacked"):
        if name not in results.runs:
            continue
        run, text = results.runs[name], BY_NAME[name].text
        difference = run.differences.get("kld_mean")
        accepted = run.differences.get("acceptance_length")
        base = results.control(run) if run.against else run
        length = base.figures["acceptance_length"][ALL].value
        found.append(
            [
                _name(run),
                f"{text.samples} × {text.length}" + ("" if text.pack else ", not packed"),
                f"{run.facts['calibration_tokens']:,}",
                relative(difference[ALL], base.kld.value) if difference else "",
                p_value(corrected(results)[name]) if difference else "",
                f"{relative(accepted[ALL], length, 2)}, p {p_value(accepted[ALL].p)}" if accepted else "",
            ]
        )
    return markdown(
        ["rows", "asked for", "tokens", "KLD against `static`", "p, all", "tokens a step against `static`"],
        found,
    )


def modules(results: Results) -> str:
    """Kinds of module in more bits, and smaller groups: what that takes off the KLD, and by the byte."""
    found = []
    for run in [*_group(results, "modules"), results.runs["static-g64"], results.runs["static-g32"]]:
        big, small = (extra_bytes(run.name, run.against or "", at) for at in (layout_27b(), layout_mini()))
        gained = -100 * change(run, results).value
        worth = big > 0 and small > 0
        found.append(
            [
                _name(run),
                relative(run.differences["kld_mean"][ALL], results.control(run).kld.value),
                p_value(corrected(results)[run.name]),
                _gigabytes(big),
                f"{gained / (big / 1e9):.1f} %" if worth else "",
                f"{gained / (small / 1e6):.0f} %" if worth else "",
                f"{_size(run).bits:.2f}",
            ]
        )
    head = ["change", "KLD against control", "p, all", "27B, computed", "gain a GB, 27B's shapes",
            "gain a MB, mini's shapes", "bits a weight"]  # fmt: skip
    return markdown(head, found)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:+.2f} GB".replace("-", "−")


def heads(results: Results) -> str:
    """Output head and MTP head by format, on `static`."""
    found = []
    for run in _group(results, "lm_head", "mtp"):
        base = results.control(run)
        difference = run.differences["kld_mean"][ALL]
        accepted = run.differences["acceptance_length"][ALL]
        length = base.figures["acceptance_length"][ALL].value
        same = not tested(run)
        found.append(
            [
                _name(run),
                "the same" if same else relative(difference, base.kld.value, 2),
                relative(accepted, length, 2),
                p_value(accepted.p),
                _gigabytes(extra_bytes(run.name, run.against or "", layout_27b())),
            ]
        )
    return markdown(
        ["change", "KLD against `static`", "tokens a step against `static`", "p", "27B, computed"], found
    )


def recipes(results: Results) -> str:
    """The combinations, against `static` of their call and beside `static-mse`."""
    found = []
    for run in [results.runs["static-mse"], *_group(results, "recipe")]:
        base = results.control(run)
        searched = next(r for r in every(results, "static-mse") if r.call == run.call)
        accepted = run.differences["acceptance_length"][ALL]
        found.append(
            [
                _name(run),
                f"`{run.against}`",
                _kld(run),
                relative(run.differences["kld_mean"][ALL], base.kld.value),
                p_value(corrected(results)[run.name]),
                "" if run.name == searched.name else percent(run.kld.value / searched.kld.value - 1),
                relative(accepted, base.figures["acceptance_length"][ALL].value, 2),
                f"{_size(run).total / 2**30:.2f} GiB",
                f"{_size(run).bits:.2f}",
            ]
        )
    for name in missing(results):
        if BY_NAME[name].group == "recipe":
            size = size_of(BY_NAME[name], layout_27b())
            found.append(
                [f"`{name}`", "", "not run", *[""] * 4, f"{size.total / 2**30:.2f} GiB", f"{size.bits:.2f}"]
            )
    head = ["experiment", "control", "KLD, 10⁻³ nats a token", "KLD against control", "p, all",
            "against `static-mse`, values alone",
            "tokens a step against control", "27B, computed", "bits a weight"]  # fmt: skip
    return markdown(head, found)


def calls(results: Results) -> str:
    """Where each figure came from, and what came out when a control was run once more."""
    rows = []
    for number, call in enumerate(results.calls):
        env = call["environment"]
        own = [run for run in results.runs.values() if run.call == number]
        again = [r for found in results.again.values() for r in found if r.call == number]
        versions = ", ".join(f"{key} {env[key]}" for key in ("torch", "transformers", "gptqmodel"))
        rows.append(
            [
                str(number + 1),
                f"{env['device']}; {versions}; Python {env['python']}",
                str(len(own)),
                ", ".join(f"`{r.name}` {_again(r, results)}" for r in again) or "none",
            ]
        )
    table = markdown(
        ["call", "where", "experiments first run in it", "run again: KLD against the first"], rows
    )
    apart = small_runs()
    left = ", ".join(f"`{name}`" for name in missing(results) if name not in apart) or "none"
    there = ", ".join(f"`{name}`" for name in apart)
    return (
        f"{table}\n\n{len(corrected(results))} comparisons of KLD. In the grid and not run: {left}. "
        f"Run apart, on a CPU and fewer documents ([`{GPTAQ.name}`]({GPTAQ.name})): {there}."
    )


def _again(run: Run, results: Results) -> str:
    return percent(run.kld.value / results.runs[run.name].kld.value - 1, 2)


TABLES = {
    "calls": calls,
    "methods": methods,
    "seeds": seeds,
    "texts": texts,
    "tokens": tokens,
    "rows": rows,
    "modules": modules,
    "heads": heads,
    "recipes": recipes,
}
