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
            help="GPTQ checkpoint of it, whose modules are tried; without, they are rounded.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="JSONL file, folder of DOMAIN.jsonl files, or a calibration source. Repeatable; needed.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where sensitivity.json and sensitivity.png go.")
    ] = Path("qwen36-sensitivity"),
    bits: Annotated[
        list[int] | None,
        typer.Option(
            min=2, max=8, help="Round to so many bits. Repeatable.  [default: 4 and 8; with QUANT 8]"
        ),
    ] = None,
    group_size: Annotated[int, typer.Option(min=1, help="Inputs that share a scale, in rounding.")] = 128,
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
        str, typer.Option(help="Arithmetic: float32, or bfloat16, whose noise hides what 8 bits cost.")
    ] = "float32",
    batch_tokens: BatchTokens = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Say which modules cost most when quantized, one at a time.

    KL divergence at the output with one module replaced and all else as in REF; modules that vLLM loads as one are
    one. What is done is kept in DIR/work: a run that was cut off goes on, and another --budget takes seconds.
    """
    from gptq_hybrid.sensitivity import BITS, ScanRequest, plot_sensitivity, tables, write_sensitivity

    if not data:
        raise HybridError(
            "no documents to measure on", remedy="Give --data, a JSONL file or a folder of them."
        )
    recipe = _base_recipe(recipe_out, budget, base)
    chosen = tuple(bits) if bits else BITS if quantized is None else BITS[1:]
    request = ScanRequest(
        reference=resolve_source(reference),
        quantized=None if quantized is None else resolve_source(quantized),
        work=out / _WORK,
        data=tuple(data),
        bits=chosen,
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
    found = _summary(_with_progress(request, to_stderr=as_json), request)
    write_sensitivity(out / "sensitivity.json", found)
    plot_sensitivity(found, out / "sensitivity.png")
    if recipe is not None and recipe_out is not None and budget is not None:
        _write_recipe(found, request, recipe, recipe_out, budget, console)
    if as_json:
        typer.echo(json.dumps(json.loads((out / "sensitivity.json").read_text(encoding="utf-8"))))
        return
    console.print(tables(found))
    console.print(f"\n{out}/sensitivity.json and {out}/sensitivity.png", highlight=False)


def _base_recipe(recipe_out: Path | None, budget: str | None, base: str) -> Recipe | None:
    """The base recipe, if a recipe is to be written; whatever is wrong is said before the scan."""
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
    """Raise, before the scan, if its figures cannot make the recipe."""
    from gptq_hybrid.sensitivity import DENSE, base_bits, budget_bytes

    layout = layout_for(Checkpoint.open(request.reference).config)
    budget_bytes(budget, layout, recipe)
    needed = {base_bits(recipe.settings, linear.name) for linear in layout.quantized} - {DENSE}
    # What QUANT stores is seen when it is read.
    if request.quantized is None and (lacking := sorted(needed - set(request.bits))):
        raise HybridError(
            f"recipe {recipe.name!r} has modules of {lacking[0]} bits, which are not measured",
            remedy=f"Add --bits {lacking[0]}.",
        )


def _summary(found: Scan, request: ScanRequest) -> Sensitivity:
    from gptq_hybrid.evaluate.inputs import name_of
    from gptq_hybrid.sensitivity import summarize_scan

    return summarize_scan(
        found,
        reference=name_of(request.reference),
        quantized=None if request.quantized is None else name_of(request.quantized),
        seed=request.seed,
    )


def _write_recipe(
    found: Sensitivity, request: ScanRequest, recipe: Recipe, path: Path, budget: str, console: Console
) -> None:
    from gptq_hybrid.sensitivity import budget_bytes, choose, write_recipe

    layout = layout_for(Checkpoint.open(request.reference).config)
    choice = choose(found, layout, recipe, budget_bytes(budget, layout, recipe))
    write_recipe(path, recipe, choice, layout)
    console.print(
        f"{path}: {len(choice.raised)} modules with more bits than in {recipe.name!r}, "
        f"{choice.extra_bytes / 1e6:,.4g} MB more; sum of single costs {choice.kld_before:.4g} → "
        f"{choice.kld_after:.4g} nats per token (that costs add up is assumed)",
        highlight=False,
    )


def _with_progress(request: ScanRequest, *, to_stderr: bool) -> Scan:
    from gptq_hybrid.sensitivity import scan

    with (
        output_to_log("sensitivity", stderr=to_stderr) as terminal,
        counting_bars(terminal) as progress,
    ):
        task = progress.add_task("layers × variants", total=None)
        return scan(
            request, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
