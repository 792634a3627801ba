"""The tables of this room's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.pages import Page
from bench.results import Json
from bench.tables import Column, table

HERE = Path(__file__).parent


def _own(row: Json, release: str) -> int:
    """Tokens that plan says this release logs: up to 0.19 the blocks of one group of layers."""
    return int(row["planned_one_group" if release.startswith("0.19") else "planned"])


def releases(result: Json) -> str:
    """Settings, and how many came out, by release."""
    lines = []
    for release, rows in sorted(result["inside"].items()):
        made = [row for row in rows if "tokens" in row]
        off = [abs(_own(row, release) - row["tokens"]) / row["tokens"] for row in made]
        blocks = sum(row["planned_blocks"] == row["blocks"] for row in made)
        same = sum(error == 0 for error in off)
        lines.append(
            [release, str(len(made)), str(len(rows) - len(made)), str(blocks), str(same), f"{max(off):.2%}"]
        )
    titles = ["vLLM", "settings", "refused", "blocks equal", "tokens equal", "tokens off at most"]
    return table(titles, lines, "The 27B, memory pretended")


def settings(result: Json) -> str:
    """Every setting, with what the oldest and the newest release of the new way of counting log."""
    first, last = (sorted(result["inside"])[at] for at in (1, -1))
    pairs = zip(result["inside"][first], result["inside"][last], strict=True)

    def logged(row: Any, at: int) -> int | None:
        return row[at].get("tokens")

    columns = [
        Column("drafts", lambda row: row[1]["drafts"]),
        Column("KV", lambda row: row[1]["kv"]),
        Column("states", lambda row: row[1]["state"]),
        Column("prefix cache", lambda row: "on" if row[1]["prefix"] else "off"),
        Column("context", lambda row: row[1]["length"], ","),
        Column("GiB", lambda row: row[1]["bytes"] / 2**30, ".2f"),
        Column("planned tokens", lambda row: row[1]["planned"], ","),
        Column(first, lambda row: logged(row, 0), ","),
        Column(last, lambda row: logged(row, 1), ","),
    ]
    return table(columns, pairs)


def engines(result: Json) -> str:
    """Real engines: tokens logged, and requests of one length that ran at once."""
    lines = [
        [
            name,
            str(row["drafts"]),
            row["kv"],
            f"{row['bytes'] / 2**20:,.0f}",
            f"{row['length']:,}",
            f"{row['planned']:,}",
            f"{row['tokens']:,}",
            str(row["batch"]),
            *(f"{row[run]['running']} ({row[run]['put_off']})" for run in ("as_planned", "one_more")),
        ]
        for name, rows in result["engines"].items()
        for row in sorted(rows, key=lambda row: (row["drafts"], row["kv"]))
    ]
    titles = ["engine", "drafts", "KV", "cache, MiB", "context", "planned tokens", "logged", "planned batch"]
    caption = "Ran at once (put off) of as many requests as planned, and of one more"
    return table([*titles, "ran", "of one more"], lines, caption)


def gpu(result: Json) -> str:
    """Engines of the 27B's shapes on a GPU; the cache is what vLLM found free."""
    columns = [
        Column("27B, vLLM 0.33.0, H200", "what"),
        Column("KV", "kv"),
        Column("prefix cache", lambda row: "on" if row["prefix"] else "off"),
        Column("context", "length", ","),
        Column("GiB", "gib", ".2f"),
        Column("planned tokens", "planned", ","),
        Column("logged", "tokens", ","),
    ]
    return table(
        columns, result["gpu"], "Two drafts; planned from the GiB that the log shows, which are rounded"
    )


FILE = HERE / "compare.json"
PAGE = Page(
    HERE / "README.md",
    tables={
        "releases": (releases, FILE),
        "engines": (engines, FILE),
        "gpu": (gpu, FILE),
        "settings": (settings, FILE),
    },
)
