"""The page's tables: python -m bench.pages matrix. No torch here."""

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
    drafts = f"{cell['accepted']} of {cell['proposed']}" if cell["proposed"] else "served"
    return drafts + ("" if cell["right"] else ", WRONG text")


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
        each = [(f"{n}, {way}", c) for n, ways in row["cells"].items() for way, c in ways.items()]
        for case, cell in each:
            lines = [("off", line) for line in cell.get("aside", ())]
            if (said := state(cell)) in ("does not start", "dies at the request"):
                lines.append((said, f"`{cell['message'][-1].strip()[:160]}`"))
            rows += [[f"{row['vllm']}, {row['place']}", case, *line] for line in lines]
    return table(["vLLM", "case", "", "said"], rows)


def producer_table(result: Json) -> str:
    """A row a set of versions: the tensors written, and a letter for their bytes."""
    letters: dict[str, str] = {}

    def written(recipe: Json) -> str:
        if "error" in recipe:
            return f"fails: `{recipe['error']}`"
        letter = letters.setdefault(recipe["digest"], chr(ord("A") + len(letters)))
        return f"{recipe['tensors']} {letter}{', slower' if recipe['slower'] else ''}"

    rows = [
        [f"{row['gptqmodel']}, {row['transformers']}, {row['torch']}", *map(written, row["recipes"].values())]
        for row in result["rows"]
    ]
    title = ["gptqmodel, transformers, torch", *result["rows"][0]["recipes"]]
    return table(title, rows, "Tensors written; one letter stands for the same bytes")


VLLM = HERE / "vllm.json"
PAGE = Page(
    HERE / "README.md",
    {
        "vllm": (versions_table, VLLM),
        "reasons": (reasons_table, VLLM),
        "producer": (producer_table, HERE / "producer.json"),
    },
)
