"""``qwen36 losses``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.tables import plain


def losses_command(
    path: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a quantized checkpoint, or its log.")
    ],
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw losses by layer and kind of module. Needs matplotlib."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which modules were quantized badly.

    Reads quant_log.csv alone. Looks for fallbacks, NaN losses, Hessians that were not positive definite, dead
    inputs, losses that stand out among the layers. Logs that gptqmodel wrote itself are read too; they say less.
    """
    from gptq_hybrid.losses import as_json as to_json
    from gptq_hybrid.losses import kinds_table, plot_losses, read_log, summary

    log = read_log(path)
    if plot is not None:
        plot_losses(log, plot)
    if as_json:
        typer.echo(json.dumps(to_json(log), indent=2))
        return
    console = Console()
    console.print(kinds_table(log.modules))
    console.print(summary(log.modules))
    if log.lacking:
        console.print(plain(f"Columns that this log lacks, and so not checked: {', '.join(log.lacking)}."))
    if plot is not None:
        console.print(plain(str(plot)), highlight=False, soft_wrap=True)
