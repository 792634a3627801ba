"""The command ``qwen36 tune prefill``: check the options, measure, write the profile, print what it means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptq_hybrid.common.atomic import keep_previous
from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import refuse_missing
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.outputs import refuse_unwritable, refuse_unwritable_folder
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.quiet import output_to_log
from gptq_hybrid.common.terminal import Step, print_next

from .machine import busy_notes, check_humming, check_machine, refuse_machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .result import Tuned
    from .shapes import Linears

# Powers of two and numbers between them: prompts do not come in tiles of a kernel.
TOKENS = (64, 96, 128, 192, 256, 384, 512, 640, 768, 1000, 1024, 1280, 1500, 2048, 3000, 4096, 6000, 8192)
_MOST_TOKENS = 1 << 16
_DTYPES = ("bfloat16", "float16")


def tune_prefill(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Folder or hub id; only its config.json is read.  [default: the 27B's shapes]",
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
        typer.Option(
            metavar="M,...", help=f"Numbers of tokens to measure.  [default: {TOKENS[0]} … {TOKENS[-1]}]"
        ),
    ] = None,
    fp8: Annotated[
        bool | None,
        typer.Option(
            "--fp8/--no-fp8",
            help="Measure e4m3 too.  [default: where the GPU multiplies it]",
            show_default=False,
        ),
    ] = None,
    a8: Annotated[
        bool | None,
        typer.Option(
            "--a8/--no-a8",
            help="Measure 8-bit activations on exact weights too.  [default: where humming-kernels is]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Where the profile goes.  [default: where vllm serve looks for it on this machine]",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="PLOT.png",
            help="Draw time against tokens there.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time the linears of a model on this GPU.

    Serving then takes the fastest route. Times every quantized linear each way, with random weights, by
    number of tokens: vLLM's own kernel, unpacking first (exact), 8-bit activations on exact weights (a8) and on
    rounded ones (fp8). Without a profile vllm serve measures a little at its start. Takes one to two minutes.

    Exit code 2: bad input, no vLLM, or no GPU.
    """
    counts = parse_tokens(rows)
    if dtype not in _DTYPES:
        raise HybridError(f"--dtype {dtype} is not served", remedy=f"Give one of: {', '.join(_DTYPES)}.")
    from vllm_qwen36_plugin.prefill.profile import cache_folder

    _refuse_outputs(out, cache_folder() / "prefill", plot)
    refuse_machine()
    from .shapes import read_linears

    linears = read_linears(model)
    fp8, a8 = check_machine(fp8), check_humming(a8)
    notes = busy_notes()
    tuned = _measure(linears, counts, dtype, scratch_mib, fp8, a8)
    if not tuned.linears:
        raise HybridError(
            "vLLM serves none of these linears by a kernel that this plugin knows",
            remedy="\n".join(tuned.notes) or "Try another GPU.",
        )
    path = _write(tuned, out, notes)
    steps = [_next_step(path, own_place=out is None)]
    if plot is not None:
        from .picture import plot as draw

        draw(tuned, plot)
    if as_json:
        content = {"path": str(path), "plot": None if plot is None else str(plot), **tuned.as_json()}
        content["notes"] = [*notes, *content["notes"]]
        print_json(content, steps=steps)
        return
    from .table import show

    show(tuned, path, plot, notes, own_place=out is None, scratch_mib=scratch_mib)
    print_next(*steps)


def _next_step(path: Path, *, own_place: bool) -> Step:
    if own_place:
        return Step("start vllm serve as before; it reads this profile")
    switch = json.dumps({"qwen36": {"prefill_profile": str(path)}})
    return Step(f"serve with it: add --additional-config '{switch}' to your vllm serve line")


def parse_tokens(text: str | None) -> tuple[int, ...]:
    """Parse ``--rows``, the numbers of tokens: ascending, each once.

    Raises:
        HybridError: ``text`` is no list of whole numbers from 1 to 65,536.
    """
    if text is None:
        return TOKENS
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not 1 <= numbers[0] <= numbers[-1] <= _MOST_TOKENS:
        raise HybridError(
            f"--rows {text!r} is no list of whole numbers from 1 to {_MOST_TOKENS:,}",
            remedy="Give them with commas between: --rows 128,1024,8192",
        )
    return tuple(numbers)


def _refuse_outputs(out: Path | None, own_place: Path, plot: Path | None) -> None:
    if out is None:
        refuse_unwritable_folder("--out", own_place)
    refuse_unwritable("--out", out)
    refuse_unwritable("--plot", plot)
    if plot is not None:
        refuse_missing("matplotlib")


def _measure(
    linears: Sequence[Linears],
    counts: Sequence[int],
    dtype: str,
    scratch_mib: int,
    fp8: bool,
    a8: bool,
) -> Tuned:
    """Measure under a progress bar; what vLLM prints goes to a log.

    Raises:
        HybridError: vLLM is its CPU build or not as expected, or the GPU is short of memory.
    """
    import torch

    from vllm_qwen36_plugin.errors import CompatError

    with (
        output_to_log("tune") as terminal,
        counting_bars(terminal) as progress,
    ):
        task = progress.add_task("vLLM starts", total=None)
        try:
            from vllm.platforms import current_platform

            if not current_platform.is_cuda():
                raise HybridError(
                    f"this vLLM is built for {current_platform.device_name}, not for CUDA",
                    remedy="Install vLLM's own wheel: pip install 'vllm-qwen36-plugin[serve]'",
                )
            from vllm_qwen36_plugin.prefill.offer import offer_kernel

            from .layers import tune

            offer_kernel()
            return tune(
                linears,
                dtype=dtype,
                scratch_mib=scratch_mib,
                fp8=fp8,
                a8=a8,
                counts=counts,
                device=torch.device("cuda", 0),
                on_progress=lambda done, total: progress.update(
                    task, description="measuring", completed=done, total=total
                ),
            )
        except torch.cuda.OutOfMemoryError as error:
            raise HybridError(
                f"the GPU is short of memory: {str(error).splitlines()[0]}",
                remedy="Stop what else runs on it, or measure fewer tokens: --rows 128,512,1024,2048",
            ) from error
        except CompatError as error:
            raise HybridError(
                f"{error}", remedy="Give this message and vLLM's version to the plugin's authors."
            ) from error


def _write(tuned: Tuned, out: Path | None, notes: list[str]) -> Path:
    """Write the profile and return its file: ``out``, or the one that start-up reads, whose other shapes stay."""
    from vllm_qwen36_plugin.prefill.profile import ProfileError, cache_path, read, write

    profile = tuned.profile
    if out is None:
        assert profile.card is not None
        out = cache_path(profile.card)
        if out.is_file():
            try:
                profile = read(out).merged(profile)
            except ProfileError as error:
                notes.append(f"{error}; it was replaced")
    else:
        kept = keep_previous(out)
        if kept is not None:
            notes.append(f"the file that was there before is in {kept}")
    try:
        write(out, profile)
    except OSError as error:
        raise HybridError(
            f"the profile cannot be written: {error}", remedy="Give another place with --out."
        ) from error
    return out
