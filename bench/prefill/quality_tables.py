"""Tables from what `quality.py` wrote. No torch here."""

from __future__ import annotations

from collections.abc import Mapping

from bench.results import Json
from bench.tables import table


def _number(value: float, factor: float, digits: int, sign: str = "") -> str:
    return format(value * factor, f"{sign}z.{digits}f").replace("-", "−")


def _figure(found: Mapping[str, float | None], factor: float, digits: int, sign: str = "") -> str:
    """Figure and interval, in units of 1 / ``factor``."""
    value, *ends = (
        None if x is None else _number(x, factor, digits, sign)
        for x in (found["value"], found["low"], found["high"])
    )
    return str(value) if None in ends else f"{value} [{ends[0]}, {ends[1]}]"


def _p(value: float) -> str:
    """Four digits where it is small."""
    return f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def _by_domain(part: Json, way: str) -> dict[str, Json]:
    """Figures of one way, ``all`` first."""
    found = next(entry for entry in part["checkpoints"] if entry["name"] == way)
    return {row["domain"]: row for row in (found["overall"], *found["domains"])}


def _against(part: Json, way: str, measure: str = "kld_mean") -> dict[str, Json]:
    """The paired difference of a way less `w4a16`, ``all`` first; nothing for `w4a16` itself."""
    for entry in part["comparisons"]:
        if (entry["a"], entry["b"]) == (way, "w4a16"):
            rows = (entry["overall"], *entry["domains"])
            return {r["domain"]: d for r in rows for d in r["differences"] if d["measure"] == measure}
    return {}


def ways_table(result: Json, name: str) -> str:
    """One row a way, over all domains; ``name`` is ``everywhere`` or ``context``."""
    part, rows = result[name], []
    base = _by_domain(part, "w4a16")["all"]["kld_mean"]["value"]
    ways = [entry["name"] for entry in part["checkpoints"]]
    for way in reversed(ways):
        row, less = _by_domain(part, way)["all"], _against(part, way).get("all")
        top1 = _against(part, way, "top1").get("all")
        rows.append(
            [
                f"`{way}`",
                _figure(row["kld_mean"], 1e3, 2),
                _figure(less["difference"], 1e3, 2, "+") if less else "",
                _number(less["difference"]["value"] / base, 100, 1, "+") + " %" if less else "",
                _p(less["p"]) if less else "",
                _figure(row["top1"], 100, 2),
                _figure(top1["difference"], 100, 2, "+") if top1 else "",
                f"{row['perplexity_ratio']['value']:.4f}",
                f"{row['acceptance']['length']['value']:.3f}" if row["acceptance"] else "",
            ]
        )
    head = ["", "KLD, 10⁻³ nats a token", "less `w4a16`", "of it", "p"]
    return table([*head, "top-1, %", "less `w4a16`", "perplexity ratio", "tokens a step"], rows)


def domains_table(result: Json, name: str) -> str:
    """One row a domain: mean KLD of every way in 10⁻³ nats a token, and the first way less `w4a16`."""
    part = result[name]
    ways = [entry["name"] for entry in part["checkpoints"]][::-1]
    figures, less = {way: _by_domain(part, way) for way in ways}, _against(part, ways[-1])
    rows = []
    for domain, difference in less.items():
        base = figures["w4a16"][domain]["kld_mean"]["value"]
        rows.append(
            [
                domain,
                str(figures["w4a16"][domain]["documents"]),
                *(f"{figures[way][domain]['kld_mean']['value'] * 1e3:.2f}" for way in ways),
                _figure(difference["difference"], 1e3, 2, "+"),
                _number(difference["difference"]["value"] / base, 100, 1, "+") + " %",
                _p(difference["p_holm"]),
            ]
        )
    head = ["domain", "documents", *(f"`{way}`" for way in ways), f"`{ways[-1]}` less `w4a16`"]
    return table([*head, "of it", "p (Holm)"], rows)


def report(result: Json) -> str:
    """All tables."""
    where, settings = result["environment"], result["settings"]
    rows = settings["context"]
    return "\n\n".join(
        [
            f"`{settings['recipe']}`, calibrated on {settings['calibration_rows']} rows "
            f"({settings['calibration_tokens']:,} tokens), {settings['linears']} linears; "
            f"{settings['documents']} documents ({settings['tokens']:,} tokens); {where['device']}, "
            f"torch {where['torch']}.",
            "Every row of a document one way:",
            ways_table(result, "everywhere"),
            domains_table(result, "everywhere"),
            f"The first {rows} rows in FP8, scored behind them:",
            ways_table(result, "context"),
            domains_table(result, "context"),
        ]
    )
