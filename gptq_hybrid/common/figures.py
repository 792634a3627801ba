"""What the plots of all commands share: colours, markers, escaping, and saving a file whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .atomic import building_file

# Okabe & Ito (2008): distinguishable under every common colour blindness. Markers repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def text(name: str) -> str:
    """Escape the dollar signs of a name, which matplotlib would typeset as a formula."""
    return name.replace("$", r"\$")


def save(figure: Any, path: Path) -> None:
    """Save a matplotlib figure as a PNG file that appears only once it is whole."""
    with building_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
