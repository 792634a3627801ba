"""The page's tables. No torch here.

python -m bench.pages mtp_faults
"""

from __future__ import annotations

from pathlib import Path

from bench.pages import Page
from bench.results import Json
from bench.tables import table

HERE = Path(__file__).parent
SETUPS = ("stock", "plugin")


def cells(row: Json) -> tuple[str, str, str, str]:
    """What a server did, after how long, whether what it wrote is right, and the drafts it accepted."""
    state = "starts" if row["started"] else f"stops, exit {row['exit_code']}"
    drafts = "-" if row["proposed"] is None else f"{row['accepted']} of {row['proposed']}"
    output = ("right" if row["output_right"] else "WRONG") if row["started"] else "-"
    return state, f"{row['seconds']:.0f} s", output, drafts


def faults_table(result: Json) -> str:
    """A row a fault: what stock vLLM and the plugin do."""
    machine = result["machine"]
    rows = []
    for name, by_setup in result["rows"].items():
        fault = next(iter(by_setup.values()))["fault"]
        each = [cells(by_setup[setup]) if setup in by_setup else ("",) * 4 for setup in SETUPS]
        rows.append([f"{name}: {fault}", *each[0], *each[1]])
    header = [column for setup in SETUPS for column in (setup, "after", "output", "drafts accepted")]
    note = (
        f"vLLM {machine['vllm']}, {machine['kind']}, {machine['cores']} cores; demo model, two drafts a step"
    )
    return table(["MTP head", *header], rows, note)


PAGE = Page(
    HERE / "README.md",
    {"cpu": (faults_table, HERE / "results-cpu.json"), "h200": (faults_table, HERE / "results-h200.json")},
)
