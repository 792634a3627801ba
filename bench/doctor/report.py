"""Tables of the page; written by `python -m bench.pages doctor`."""

from __future__ import annotations

from pathlib import Path

from bench.pages import Page
from bench.results import Json
from bench.tables import Column, table


def agreement(result: Json) -> str:
    """What `check` said of each case, and what the engine did."""
    columns = [
        Column("case", "case"),
        Column("check says", "verdict"),
        Column("rules", lambda row: ", ".join(row["rules"])),
        Column("the engine", "engine"),
        Column(
            "drafts accepted",
            lambda row: None if row["proposed"] is None else f"{row['accepted']} of {row['proposed']}",
        ),
    ]
    rows = ({"case": name, **row} for name, row in result["cases"].items())
    return table(columns, rows, f"Stock vLLM {result['vllm']}, {result['machine']}")


def cost(result: Json) -> str:
    """Time and memory of `qwen36 check`, and time of the plugin in a process of vLLM."""
    check, plugin = result["check"], result["plugin"]
    rows = [
        {"what": "`qwen36 check`, the command", **check["command"]},
        {"what": "of it the start (`qwen36 --version`)", **check["version_only"]},
        {"what": "`check()`, imported", **check["in_process"]},
        *(
            {"what": what, "median_ms": plugin[key]["wall_ms"], "least_ms": plugin[key]["least_wall_ms"]}
            for what, key in (
                ("the plugin's `register()`", "register"),
                ("its check of the MTP head, first", "first_mtp_check"),
                ("again in the same process", "second_mtp_check"),
                ("its check of act order, first", "first_act_order_check"),
            )
        ),
    ]
    columns = [
        Column("what", "what"), Column("ms, median", "median_ms"), Column("ms, least", "least_ms"),
        Column("MiB at most", "peak_mib"),
    ]  # fmt: skip
    checkpoint, local, http = result["checkpoint"], check["local"], check["http"]
    made = (
        f"{result['machine']}, Python {result['python']}, vLLM {plugin['vllm']}; "
        f"{checkpoint['tensors']:,} tensors, {checkpoint['files']} files, {checkpoint['gb']} GB. "
        f"A check reads {local['bytes_read'] / 1e6:.1f} MB; "
        f"over HTTP {http['bytes_read'] / 1e3:.0f} KB in {http['requests']} requests"
    )
    return table(columns, rows, made)


def releases(result: Json) -> str:
    """How many kinds of checkpoints each release and `check` agree on, and which not."""
    rows = [
        {
            "release": release,
            "agree": f"{sum(not row['differ'] for row in kinds.values())} of {len(kinds)}",
            "differ": ", ".join(name for name, row in kinds.items() if row["differ"]),
        }
        for release, kinds in result.items()
    ]
    columns = [Column("vLLM", "release"), Column("agree", "agree"), Column("differ", "differ")]
    return table(columns, rows, "CPU builds; 0.33.0 is its Python over the compiled parts of 0.32.0")


_HERE = Path(__file__).parent
PAGE = Page(
    _HERE / "README.md",
    {
        "agreement": (agreement, _HERE / "agreement.json"),
        "cost": (cost, _HERE / "cost.json"),
        "releases": (releases, _HERE / "releases.json"),
    },
)
