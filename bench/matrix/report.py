"""The page's tables. No torch here.

python -m bench.pages matrix
"""

from __future__ import annotations

from pathlib import Path

from bench.pages import Page
from bench.results import Json
from bench.tables import table

HERE = Path(__file__).parent
COLUMNS = ("MTP", "act order", "drafts", "lost head", "bad option")


def state(cell: Json | None) -> str:
    """What a server did, in a word or the drafts it accepted."""
    if cell is None:
        return ""
    if not cell["started"]:
        ours = any(line.startswith("vllm-qwen36-plugin:") for line in cell["message"])
        return "refused" if ours else "does not start"
    if cell["right"] is None:
        return "dies at the request"
    text = "" if cell["right"] else ", WRONG text"
    return f"{cell['accepted']} of {cell['proposed']}{text}" if cell["proposed"] else f"served{text}"


def versions_table(result: Json) -> str:
    """A row a version and place; in a cell the plugin's, and stock's after a stroke."""
    rows = []
    for row in result["rows"]:
        over = "" if row["compiled"] == row["vllm"] else f" over {row['compiled']}"
        cells = [row["cells"].get(name, {}) for name in COLUMNS]
        both = [" / ".join(filter(None, (state(c.get("plugin")), state(c.get("stock"))))) for c in cells]
        rows.append([f"{row['vllm']}{over}, {row['place']}", *both])
    return table(["vLLM", *COLUMNS], rows, "With the plugin / stock; drafts accepted of proposed")


def reasons_table(result: Json) -> str:
    """Why a server did not do what was asked, other than by the plugin's refusal; and what the plugin left off."""
    rows = []
    for row in result["rows"]:
        for name, by_way in row["cells"].items():
            for way, cell in by_way.items():
                where = f"{row['vllm']}, {row['place']}"
                said = state(cell)
                if said in ("does not start", "dies at the request"):
                    rows.append([where, f"{name}, {way}", said, f"`{cell['message'][-1].strip()[:160]}`"])
                rows += [[where, f"{name}, {way}", "off", line] for line in cell.get("aside", ())]
    return table(["vLLM", "case", "", "said"], [[*row] for row in rows])


def producer_table(result: Json) -> str:
    """A row a set of versions: the tensors written, and a letter for their bytes."""
    letters: dict[str, str] = {}
    rows = []
    for row in result["rows"]:
        cells = []
        for recipe in row["recipes"].values():
            if "error" in recipe:
                cells.append(f"fails: `{recipe['error']}`")
                continue
            letter = letters.setdefault(recipe["digest"], chr(ord("A") + len(letters)))
            cells.append(f"{recipe['tensors']} {letter}{', slower' if recipe['slower'] else ''}")
        rows.append([f"{row['gptqmodel']}, {row['transformers']}, {row['torch']}", *cells])
    names = [name for row in result["rows"] for name in row["recipes"]]
    title = "gptqmodel, transformers, torch"
    return table(
        [title, *dict.fromkeys(names)], rows, "Tensors written; one letter stands for the same bytes"
    )


PAGE = Page(
    HERE / "README.md",
    {
        "vllm": (versions_table, HERE / "vllm.json"),
        "reasons": (reasons_table, HERE / "vllm.json"),
        "producer": (producer_table, HERE / "producer.json"),
    },
)
