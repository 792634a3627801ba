"""An evaluation as one HTML file."""

from __future__ import annotations

from pathlib import Path

from gptq_hybrid.common.html_page import write_html_page

from ._result import Evaluation, as_json
from .table import evaluation_summary, evaluation_tables


def write_evaluation_page(evaluation: Evaluation, path: str | Path, *, picture: str | Path | None) -> None:
    """Write sentences, picture, tables with intervals, and the JSON into one file that needs nothing else.

    Args:
        evaluation: the result.
        path: the HTML file, which appears only once it is whole.
        picture: what ``plot_evaluation`` drew; None for none.
    """
    write_html_page(
        Path(path),
        title=f"Distance from {evaluation.reference}",
        sentences=evaluation_summary(evaluation),
        tables=evaluation_tables(evaluation, wide=True),
        conditions={
            **evaluation.environment,
            **evaluation.settings,
            **{f"fingerprint of {name}": digest for name, digest in evaluation.fingerprints.items()},
        },
        data=as_json(evaluation),
        picture=None if picture is None else Path(picture),
    )
