"""What `acceptance.py` found, as tables; no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.drafts.engine_tables import bytes_by_form
from bench.drafts.frequencies import homogeneity
from bench.results import Json
from bench.tables import table

# Tokens of Qwen3.5 that hold as much of held-out text as 7,000 of the mini model's.
_LIKE_THE_MINIS = 65536


def tokens_a_step(run: Mapping[str, Any]) -> float:
    """Mean over all verification steps: the accepted drafts, and the token that the target adds."""
    steps = sum(found["steps"] for found in run["greedy"].values())
    return 1 + sum(sum(found["accepted"]) for found in run["greedy"].values()) / steps


def by_position(run: Mapping[str, Any]) -> list[float]:
    """Share of steps in which the first, the second, … draft was accepted."""
    domains = list(run["greedy"].values())
    steps = sum(found["steps"] for found in domains)
    return [sum(counts) / steps for counts in zip(*(found["accepted"] for found in domains), strict=True)]


def same_tokens(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[int, int]:
    """Greedy prompts that are alike to the last token in two ways, and how many there are."""
    pairs = [
        (a, b)
        for domain, found in one["greedy"].items()
        for a, b in zip(found["tokens"], other["greedy"][domain]["tokens"], strict=True)
    ]
    return sum(a == b for a, b in pairs), len(pairs)


def parted_alike(run: Mapping[str, Any], stock: Mapping[str, Any], none: Mapping[str, Any]) -> int:
    """Prompts whose tokens are those of no speculation with vLLM's drafts, and not in this way."""
    count = 0
    for domain, found in none["greedy"].items():
        for a, b, c in zip(
            found["tokens"],
            stock["greedy"][domain]["tokens"],
            run["greedy"][domain]["tokens"],
            strict=True,
        ):
            count += a == b and a != c
    return count


def report(result: Json) -> str:
    """Acceptance and tokens, a row a way."""
    runs = result["runs"]
    none, stock = runs.get("none"), runs.get("bf16")
    rows = []
    for way, run in runs.items():
        cells = [way]
        if way == "none":
            cells += ["", "", ""]
        else:
            length = tokens_a_step(run)
            cells += [
                " ".join(f"{share:.3f}" for share in by_position(run)),
                f"{length:.3f}",
                "" if stock is None else f"{length / tokens_a_step(stock):.4f}",
            ]
        if none is None or way == "none":
            cells += ["", "", ""]
        else:
            same, count = same_tokens(none, run)
            cells += [f"{same} of {count}", "" if stock is None else str(parted_alike(run, stock, none))]
            cells += [_p(none, run)]
        rows.append(cells)
    header = [
        "drafts",
        "accepted, by position",
        "tokens a step",
        "over bf16",
        "greedy as without drafts",
        "where bf16's are, and these not",
        "sampled: chi-square p",
    ]
    where = next(iter(runs.values()))["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where.items())
    return f"{table(header, rows)}\n\n{versions}."


def parts_table(result: Json) -> str:
    """What `parts.py` computed: ratios with standard errors, and what a draft of the 27B would read."""
    given, rows = result["settings"], []
    for name, mix in result["mixes"].items():
        ratios = [
            "{:.3f} ({:.4f})".format(*mix[key]) for key in ("few_over_few", "few_over_all", "all_over_all")
        ]
        read = sum(bytes_by_form(mix["forms"], _LIKE_THE_MINIS).values())
        rows.append([name, *ratios, f"{read / 1e6:.0f}"])
    few = f"{given['tokens']:,} tokens"
    header = ["drafter", f"over BF16, both over {few}", f"over {few}, over BF16 over all", "over all, both",
              f"a draft of the 27B over {_LIKE_THE_MINIS:,}, MB"]  # fmt: skip
    return (
        f"{table(header, rows)}\n\nComputed in float32 along {given['replies']:,} greedy replies of {given['new']} "
        f"tokens; tokens a step, standard errors in brackets."
    )


def _p(none: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    if not none.get("sampled") or not run.get("sampled"):
        return ""
    found = homogeneity(none["sampled"], run["sampled"])
    count = sum(sum(counts.values()) for counts in run["sampled"].values())
    return f"{found.p:.3f} ({found.statistic:.0f} over {found.freedom}, {count:,} draws)"
