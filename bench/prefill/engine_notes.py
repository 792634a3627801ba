"""What every table of `engine.py`'s results says of itself: names of columns, card and versions, problems."""

from __future__ import annotations

from bench.prefill.engine_results import Column
from bench.results import Json
from bench.tables import where


def label(column: Column) -> str:
    """A column's name; of the plugin's ways, the process stands before the way."""
    variant, way = column
    return variant if variant == way else f"{variant}: {way}"


def environments(result: Json) -> str:
    """Card and versions, once where all runs share them; runs that were cut off are named."""
    by_place: dict[str, list[str]] = {}
    for name, run in result["runs"].items():
        if "environment" in run:
            place = run["environment"]
            extra = [f"{key} {place[key]}" for key in ("triton", "driver") if key in place]
            by_place.setdefault(", ".join([where(place), *extra]), []).append(name)
    places = [place if len(by_place) == 1 else f"{', '.join(of)}: {place}" for place, of in by_place.items()]
    notes = [*places, f"{result['settings']['layers']} layers"]
    if result["settings"]["tiny"]:
        notes.append("a tiny model, to try the script out: these times say nothing")
    for name, run in result["runs"].items():
        notes += [f"PROBLEM in {name}: {text}" for text in run.get("problems", [])]
    cut = [name for name, run in result["runs"].items() if not run.get("complete")]
    if cut:
        notes.append(f"cut off before the end: {', '.join(cut)}")
    return "; ".join(notes)


def noted(body: str, *notes: str) -> str:
    """A table with its notes below."""
    return f"{body}\n\n{'. '.join(note for note in notes if note)}."


def number(value: float | None, form: str) -> str:
    """A cell; empty where there is no value."""
    return "" if value is None else format(value, form)
