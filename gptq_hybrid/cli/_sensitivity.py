"""``qwen36 sensitivity``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.quiet import output_to_log
from gptq_hybrid.common.tables import plain
from gptq_hybrid.recipes import DEFAULT_RECIPE

from ._options import (
    BatchTokens,
    Device,
    Drafts,
    Limit,
    MaxLength,
    Reference,
    Seed,
)
from ._quantize import resolve_source

if TYPE_CHECKING:
    from gptq_hybrid.recipes import Recipe
    from gptq_hybrid.sensitivity import Scan, ScanRequest, Sensitivity

_WORK = "work"


def sensitivity_command(
    reference: Reference,
    quantized: Annotated[
        str | None,
        typer.Argument(
            metavar="QUANT",
            help="GPTQ checkpoint of REF, whose modules are tried. Without it, modules are only rounded.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="JSONL file, folder of DOMAIN.jsonl files, or a calibration source. Repeatable. Required.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where sensitivity.json and sensitivity.png go.")
    ] = Path("qwen36-sensitivity"),
    bits: Annotated[
        list[int] | None,
        typer.Option(min=2, max=8, help="Bits to round to. Repeatable.  [default: 4 and 8; with QUANT 8]"),
    ] = None,
    group_size: Annotated[int, typer.Option(min=1, help="Inputs that share a scale when rounding.")] = 128,
    limit: Limit = None,
    max_length: MaxLength = 512,
    drafts: Drafts = 2,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="GIB",
            help="Main memory for hidden states, in GiB.  [default: half of what is free]",
        ),
    ] = None,
    recipe_out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Write a recipe that gives the costliest modules more bits."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes the recipe may add: 500MB, 1GiB, or 3% of the checkpoint."),
    ] = None,
    base: Annotated[str, typer.Option(help="Recipe to start from.")] = DEFAULT_RECIPE,
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(help="Arithmetic: float32, or bfloat16, whose rounding hides what 8 bits cost.")
    ] = "float32",
    batch_tokens: BatchTokens = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure which modules cost most when they are quantized, one at a time.

    The cost is the KL divergence at the output with one module replaced and all else as in REF. Modules that vLLM
    loads as one count as one. Results are kept in DIR/work: an interrupted run continues, and another --budget
    takes seconds.
    """
    from gptq_hybrid.sensitivity import (
        BITS,
        ScanRequest,
        plot_sensitivity,
        sensitivity_tables,
        write_sensitivity,
    )
    from gptq_hybrid.sensitivity import as_json as to_json

    if not data:
        raise HybridError(
            "no documents to measure on", remedy="Give --data, a JSONL file or a folder of them."
        )
    recipe = _load_base(recipe_out, budget, base)
    rounded_bits = tuple(bits) if bits else BITS if quantized is None else BITS[1:]
    request = ScanRequest(
        reference=resolve_source(reference),
        quantized=None if quantized is None else resolve_source(quantized),
        work=out / _WORK,
        data=tuple(data),
        bits=rounded_bits,
        group_size=group_size,
        limit=limit,
        max_length=max_length,
        drafts=drafts,
        seed=seed,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        memory=None if memory is None else int(memory * 2**30),
    )
    if recipe is not None and budget is not None:
        _refuse_budget(budget, request, recipe)
    console = Console(stderr=as_json)
    result = _summarize(_scan(request, to_stderr=as_json), request)
    write_sensitivity(out / "sensitivity.json", result)
    plot_sensitivity(result, out / "sensitivity.png")
    if recipe is not None and recipe_out is not None and budget is not None:
        _write_recipe(result, request, recipe, recipe_out, budget, console)
    if as_json:
        typer.echo(json.dumps(to_json(result)))
        return
    console.print(sensitivity_tables(result))
    console.print(plain(f"\n{out}/sensitivity.json and {out}/sensitivity.png"), highlight=False)


def _load_base(recipe_out: Path | None, budget: str | None, base: str) -> Recipe | None:
    """Load the base recipe if a recipe is to be written; refuse whatever is wrong before the scan."""
    from gptq_hybrid.recipes import load_recipe
    from gptq_hybrid.sensitivity import refuse_base

    if recipe_out is None and budget is None:
        return None
    if recipe_out is None or budget is None:
        raise HybridError("--recipe-out and --budget go together", remedy="Give both, or neither.")
    if recipe_out.suffix != ".toml":
        raise HybridError(f"{recipe_out} does not end in .toml", remedy="Recipes are .toml files.")
    recipe = load_recipe(base)
    refuse_base(recipe)
    return recipe


def _refuse_budget(budget: str, request: ScanRequest, recipe: Recipe) -> None:
    """Make sure, before the scan, that its figures can make the recipe."""
    from gptq_hybrid.sensitivity import DENSE, budget_bytes, recipe_bits

    layout = layout_for(Checkpoint.open(request.reference).config)
    budget_bytes(budget, layout, recipe)
    needed = {recipe_bits(recipe.settings, linear.name) for linear in layout.quantized} - {DENSE}
    # The bits that QUANT stores are known only once it is read.
    if request.quantized is None and (missing := sorted(needed - set(request.bits))):
        raise HybridError(
            f"recipe {recipe.name!r} has modules of {missing[0]} bits, which are not measured",
            remedy=f"Add --bits {missing[0]}.",
        )


def _summarize(scan: Scan, request: ScanRequest) -> Sensitivity:
    from gptq_hybrid.evaluate import checkpoint_name
    from gptq_hybrid.sensitivity import summarize_scan

    return summarize_scan(
        scan,
        reference=checkpoint_name(request.reference),
        quantized=None if request.quantized is None else checkpoint_name(request.quantized),
        seed=request.seed,
    )


def _write_recipe(
    result: Sensitivity, request: ScanRequest, recipe: Recipe, path: Path, budget: str, console: Console
) -> None:
    from gptq_hybrid.sensitivity import budget_bytes, choose_bits, write_recipe

    layout = layout_for(Checkpoint.open(request.reference).config)
    choice = choose_bits(result, layout, recipe, budget_bytes(budget, layout, recipe))
    write_recipe(path, recipe, choice, layout)
    console.print(
        f"{plain(str(path))}: {len(choice.raised)} modules with more bits than in {plain(repr(recipe.name))}, "
        f"{choice.extra_bytes / 1e6:,.4g} MB more; sum of single costs {choice.kld_before:.4g} → "
        f"{choice.kld_after:.4g} nats per token (that costs add up is assumed)",
        highlight=False,
    )


def _scan(request: ScanRequest, *, to_stderr: bool) -> Scan:
    from gptq_hybrid.sensitivity import scan

    with (
        output_to_log("sensitivity", stderr=to_stderr) as terminal,
        counting_bars(terminal) as progress,
    ):
        task = progress.add_task("layers × variants", total=None)
        return scan(
            request, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
