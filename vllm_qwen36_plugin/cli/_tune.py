"""``qwen36 tune``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gptq_hybrid.checkpoint import HybridError
from gptq_hybrid.cli._options import AsJson
from gptq_hybrid.cli._quiet import output_to_log

from ._machine import in_use, refuse_machine
from .drafts._options import (
    Batches,
    ContextNames,
    Drafts,
    LongTokens,
    MaxTokens,
    Numbers,
    Repeats,
    Requests,
    Temperature,
    VllmArgs,
    refuse_mixed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._result import Tuned
    from ._shapes import Linears

# Powers of two and what lies between: prompts do not come in tiles of a kernel.
ROWS = (64, 96, 128, 192, 256, 384, 512, 640, 768, 1000, 1024, 1280, 1500, 2048, 3000, 4096, 6000, 8192)
_MOST_ROWS = 1 << 16
_DTYPES = ("bfloat16", "float16")


def tune_command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Folder or hub id; without --drafts only its config.json is read.  [default: the 27B's shapes]",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="What the model is served in: bfloat16 or float16.")
    ] = "bfloat16",
    scratch_mib: Annotated[
        int, typer.Option(min=1, help="MiB of GPU memory that a weight is unpacked into, part by part.")
    ] = 128,
    rows: Annotated[
        str | None,
        typer.Option(metavar="M,...", help=f"Numbers of rows to measure.  [default: {ROWS[0]} … {ROWS[-1]}]"),
    ] = None,
    fp8: Annotated[
        bool | None,
        typer.Option(
            "--fp8/--no-fp8",
            help="Measure 8-bit activations too.  [default: where the GPU multiplies them]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Where the result goes.  [default: a profile, where vllm serve looks for it on this machine; "
            "with --drafts qwen36-drafts.json]",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="PLOT.png",
            help="Draw time against rows, or drafts, there.  [with --drafts: beside --out]",
        ),
    ] = None,
    drafts: Drafts = None,
    numbers: Numbers = None,
    batches: Batches = None,
    context_names: ContextNames = None,
    long_tokens: LongTokens = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    requests: Requests = None,
    repeats: Repeats = None,
    vllm_args: VllmArgs = None,
    as_json: AsJson = False,
) -> None:
    """Time the linears on this GPU, or how many drafts pay; serve by the result.

    For each quantized linear of the model, with random weights: vLLM's own kernel, unpacking first (exact), and
    8-bit activations too (fp8), by number of rows. Without a profile vllm serve measures a little at its start.
    Takes one to two minutes.

    With --drafts: vllm serve is started with each number of MTP drafts and asked the prompts at each batch and
    context; recommended is the number with the shortest time per token. What was measured is kept in the result
    file, and the same command goes on from there.

    Exit code 2: bad input, no vLLM, no GPU (which --drafts can do without), or a server that failed.
    """
    refuse_mixed(context, drafts=drafts is not None)
    if drafts is not None:
        from .drafts._command import OUT, Asked, tune_drafts

        _refuse_unusable(out or OUT, plot)
        asked = Asked(
            drafts,
            model,
            numbers,
            batches,
            context_names,
            long_tokens,
            max_tokens,
            temperature,
            requests,
            repeats,
            vllm_args,
        )
        tune_drafts(asked, out=out or OUT, plot=plot, as_json=as_json)
        return
    counts = parsed_rows(rows)
    if dtype not in _DTYPES:
        raise HybridError(f"--dtype {dtype} is not served", remedy=f"Give one of: {', '.join(_DTYPES)}.")
    from vllm_qwen36_plugin.prefill.profile import cache_folder

    _refuse_unusable(out or cache_folder() / "prefill" / "profile.json", plot)
    from ._shapes import linears_at

    linears = linears_at(model)
    wanted = refuse_machine(fp8)
    notes = in_use()
    tuned = _measured(linears, counts, dtype, scratch_mib, wanted, to_stderr=as_json)
    if not tuned.linears:
        raise HybridError(
            "vLLM serves none of these linears by a kernel that this plugin knows",
            remedy="\n".join(tuned.notes) or "Try another GPU.",
        )
    target = _write(tuned, out, notes)
    if plot is not None:
        from ._picture import plot as draw

        draw(tuned, plot)
    if as_json:
        found = {"path": str(target), "plot": None if plot is None else str(plot), **tuned.as_json()}
        found["notes"] = [*notes, *found["notes"]]
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    from ._table import show

    show(tuned, target, plot, notes, own_place=out is None, scratch_mib=scratch_mib)


def parsed_rows(text: str | None) -> tuple[int, ...]:
    """``--rows``, ascending and each once.

    Raises:
        HybridError: it is no list of whole numbers from 1 to 65,536.
    """
    if text is None:
        return ROWS
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not 1 <= found[0] <= found[-1] <= _MOST_ROWS:
        raise HybridError(
            f"--rows {text!r} is no list of whole numbers from 1 to {_MOST_ROWS:,}",
            remedy="Give them with commas between: --rows 128,1024,8192",
        )
    return tuple(found)


def _refuse_unusable(out: Path, plot: Path | None) -> None:
    for option, path in (("--out", out), ("--plot", plot)):
        _refuse_unwritable(option, path)
    if plot is not None:
        from gptq_hybrid.evaluate._needs import need

        need("matplotlib")


def _refuse_unwritable(option: str, path: Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise HybridError(f"{path} is a folder", remedy=f"Give the name of a file with {option}.")
    place = path.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise HybridError(f"{path} cannot be written", remedy=f"Give another place with {option}.")


def _measured(
    linears: Sequence[Linears],
    rows: Sequence[int],
    dtype: str,
    scratch_mib: int,
    fp8: bool,
    *,
    to_stderr: bool,
) -> Tuned:
    """Measured under a progress bar, all that vLLM prints kept away.

    Raises:
        HybridError: vLLM is its CPU build or not as expected, or the GPU is short of memory.
    """
    import torch

    from vllm_qwen36_plugin.errors import CompatError

    with (
        output_to_log("tune", stderr=to_stderr) as terminal,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=terminal,
        ) as progress,
    ):
        task = progress.add_task("vLLM starts", total=None)
        try:
            from vllm.platforms import current_platform

            if not current_platform.is_cuda():
                raise HybridError(
                    f"this vLLM is built for {current_platform.device_name}, not for CUDA",
                    remedy="Install vLLM's own wheel: pip install 'vllm-qwen36-plugin[serve]'",
                )
            from vllm_qwen36_plugin.compat.linear_kernels import offer_first
            from vllm_qwen36_plugin.prefill.kernel import RowDispatchKernel

            from ._layers import tune

            offer_first("CUDA", RowDispatchKernel, ("marlin", "machete"))
            return tune(
                linears,
                dtype=dtype,
                scratch_mib=scratch_mib,
                fp8=fp8,
                rows=rows,
                device=torch.device("cuda", 0),
                on_progress=lambda done, total: progress.update(
                    task, description="measuring", completed=done, total=total
                ),
            )
        except torch.cuda.OutOfMemoryError as error:
            raise HybridError(
                f"the GPU is short of memory: {str(error).splitlines()[0]}",
                remedy="Stop what else runs on it, or measure fewer rows: --rows 128,512,1024,2048",
            ) from error
        except CompatError as error:
            raise HybridError(
                f"{error}", remedy="Give this message and vLLM's version to the plugin's authors."
            ) from error


def _write(tuned: Tuned, out: Path | None, notes: list[str]) -> Path:
    """The file written: ``out``, or where start-up looks, with what is there of other shapes."""
    from vllm_qwen36_plugin.prefill.profile import ProfileError, cached, read, write

    profile = tuned.profile
    if out is None:
        assert profile.card is not None
        out = cached(profile.card)
        if out.is_file():
            try:
                profile = read(out).merged(profile)
            except ProfileError as error:
                notes.append(f"{error}; it was replaced")
    try:
        write(out, profile)
    except OSError as error:
        raise HybridError(
            f"the profile cannot be written: {error}", remedy="Give another place with --out."
        ) from error
    return out
