"""``qwen36 card``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.outputs import refuse_unwritable_folder
from gptq_hybrid.common.terminal import SETTINGS, Step, note, out, print_next


def card_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the checkpoint.")],
    receipt: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RECEIPT",
            help="A receipt to put on it; repeatable. Those in FOLDER/receipts are on it anyway.",
        ),
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option("--eval", metavar="FILE", help="evaluation.json of qwen36 eval.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Hub id of the original.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="Licence, such as apache-2.0.")
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/DATASET",
            help="Write figures of speed into .eval_results too, as of this data set of the hub.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a README.md written by hand; it is kept as README.md.bak."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model card from what is known of a checkpoint.

    Takes the files of the checkpoint (config, calibration.json, quant_log.csv), receipts and an evaluation. Writes
    README.md, or what is between its two marks; the rest of it stays. Receipts are copied into FOLDER/receipts, and
    results for the hub into FOLDER/.eval_results.

    Exit code 2: a README.md written by hand, or a receipt of another checkpoint; nothing was written.
    """
    if not folder.is_dir():
        raise HybridError(f"{folder} is no folder", remedy="Give the folder of a checkpoint.")
    refuse_unwritable_folder("FOLDER", folder)
    from gptq_hybrid.receipt.card import CardRequest, write_card
    from gptq_hybrid.receipt.hub import parse_benchmark

    if benchmark is not None:
        parse_benchmark(benchmark)
    request = CardRequest(folder, tuple(receipt or ()), evaluation, base_model, licence, benchmark, force)
    written = write_card(request)
    name = shlex.quote(str(folder))
    steps = [Step("publish it", f"hf upload OWNER/{shlex.quote(folder.resolve().name)} {name}")]
    if not any(title.startswith("Speed") for title in written.sections):
        steps.insert(0, Step("measure its speed", f"qwen36 receipt {name}"))
    for text in written.notes:
        note(text)
    if as_json:
        print_json(
            {
                "path": str(written.files[0]),
                "written": [str(f) for f in written.files],
                "sections": list(written.sections),
                "notes": list(written.notes),
            },
            steps=steps,
        )
        return
    screen = out()
    screen.say(f"{written.files[0]}: {', '.join(written.sections)}.")
    if not SETTINGS.quiet and len(written.files) > 1:
        screen.say(f"Written beside it: {', '.join(map(str, written.files[1:]))}")
    print_next(*steps)
