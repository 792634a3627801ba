"""A scan as one HTML file."""

from __future__ import annotations

from pathlib import Path

from gptq_hybrid.common.html_page import write_html_page

from ._result import Sensitivity, as_json
from ._table import sensitivity_summary, sensitivity_tables


def write_sensitivity_page(result: Sensitivity, path: str | Path, *, picture: str | Path) -> None:
    """Write sentences, picture, a table of every module with intervals, and the JSON into one file.

    Args:
        result: the scan.
        path: the HTML file, which appears only once it is whole.
        picture: what ``plot_sensitivity`` drew.
    """
    write_html_page(
        Path(path),
        title=f"What quantizing each module of {result.reference} costs",
        sentences=sensitivity_summary(result),
        tables=sensitivity_tables(result, worst=len(result.modules), wide=True),
        conditions={
            **result.environment,
            **result.settings,
            **{f"fingerprint of {name}": digest for name, digest in result.fingerprints.items()},
        },
        data=as_json(result),
        picture=Path(picture),
    )
