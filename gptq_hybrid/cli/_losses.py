"""``qwen36 losses``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.extras import refuse_missing
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.outputs import refuse_unwritable
from gptq_hybrid.common.terminal import SETTINGS, Step, out, print_next


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
    if plot is not None:
        refuse_unwritable("--plot", plot)
        refuse_missing("matplotlib")
    from gptq_hybrid.losses import as_json as to_json
    from gptq_hybrid.losses import find_flags, kinds_table, plot_losses, read_log, summary

    log = read_log(path)
    if plot is not None:
        plot_losses(log, plot)
    steps = _next_steps(path, bool(any(find_flags(log.modules).values())))
    if as_json:
        print_json(to_json(log), steps=steps)
        return
    screen = out()
    screen.print(summary(log.modules))
    if not SETTINGS.quiet:
        screen.say("")
        screen.print(kinds_table(log.modules))
        if log.lacking:
            screen.say(f"Columns that this log lacks, and so not checked: {', '.join(log.lacking)}.")
        if plot is not None:
            screen.say(f"Drawn in {plot}.")
    print_next(*steps)


def _next_steps(path: Path, flagged: bool) -> list[Step]:
    if flagged:
        return [Step("quantize again, with more or more varied calibration data (--samples, --calibration)")]
    return [
        Step("see what quantizing cost", f"qwen36 eval ORIGINAL {path if path.is_dir() else path.parent}")
    ]
