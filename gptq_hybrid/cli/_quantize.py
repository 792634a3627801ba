"""``qwen36 quantize``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gptq_hybrid.calibration import DEFAULT_CALIBRATION, DEFAULT_PACK, mix_names
from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.quiet import output_to_log
from gptq_hybrid.common.tables import report_table
from gptq_hybrid.common.terminal import (
    SETTINGS,
    Screen,
    Step,
    err,
    note,
    out,
    print_error,
    print_next,
    warn,
)
from gptq_hybrid.common.units import duration_text, size_text
from gptq_hybrid.common.versions import plugin_installed
from gptq_hybrid.doctor.place import this_place
from gptq_hybrid.doctor.vllm_releases import installed_vllm
from gptq_hybrid.recipes import DEFAULT_RECIPE, load_recipe, recipe_names
from gptq_hybrid.writer import Limits

from ._serve import print_memory, serving_steps

if TYPE_CHECKING:
    from gptq_hybrid.quantize import QuantizeResult, RunPlan


def quantize_command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder of the BF16 original, or its hub id.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to create.")],
    recipe: Annotated[
        str, typer.Option(help=f"One of: {', '.join(recipe_names())}; or the path of a .toml file.")
    ] = DEFAULT_RECIPE,
    calibration: Annotated[
        str,
        typer.Option(
            help="A .jsonl or .txt file, a folder of them, OWNER/NAME[@REVISION][:SPLIT] on the hub, or a mix: "
            f"a .toml, or one of {', '.join(f'mix:{name}' for name in mix_names())}."
        ),
    ] = DEFAULT_CALIBRATION,
    samples: Annotated[
        int, typer.Option(min=1, help="Calibration rows. With --pack: this times --max-length tokens.")
    ] = 512,
    max_length: Annotated[int, typer.Option(min=16, help="Tokens kept of each document.")] = 2048,
    pack: Annotated[
        bool, typer.Option("--pack/--no-pack", help="Fill rows with several whole documents each.")
    ] = DEFAULT_PACK,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="JSONL file, or folder of them, that is evaluated on; may be given again."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 1,
    seed: Annotated[int, typer.Option(help="For drawing calibration rows.")] = 0,
    mtp: Annotated[bool, typer.Option("--mtp/--no-mtp", help="Keep the MTP head, or write none.")] = True,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Keep a state in DST.partial, to go on after a kill; or keep none."
        ),
    ] = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw the state of a killed run away, and begin anew.")
    ] = False,
    state_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="LAYERS",
            help="Layers between two states; by their size if not given (8 at 27B and 512 rows).",
            show_default=False,
        ),
    ] = None,
    max_fallbacks: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of modules that may fall back to plain rounding before the run fails."
        ),
    ] = Limits().fallback_fraction,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, estimate the time, and stop: write nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what gptqmodel prints.")] = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a checkpoint to W4A16 GPTQ, MTP head included.

    Checks the head, calibration data, disk, memory and versions before the model is loaded. Killed, it goes on when
    the same command is given again.

    Exit code 0: the checkpoint is written. 2: refused, or too many modules failed; none is written. 130: stopped.
    """
    recipe_loaded = load_recipe(recipe)
    from gptq_hybrid.quantize import QuantizeRequest, plan_run, quantize

    plan = plan_run(
        QuantizeRequest(
            source=resolve_source(source),
            target=target,
            recipe=recipe_loaded,
            calibration=calibration,
            samples=samples,
            max_length=max_length,
            batch_size=batch_size,
            seed=seed,
            pack=pack,
            exclude=tuple(exclude or ()),
            keep_mtp=mtp,
            resume=resume,
            restart=restart,
            state_every=state_every,
            limits=Limits(fallback_fraction=max_fallbacks),
        )
    )
    if dry_run:
        _print_dry_run(plan)
        return
    # With --json stdout has the result alone; the plan of a run is for those who watch it.
    _print_plan(err(), plan)
    with output_to_log("quantize", enabled=not verbose) as terminal, counting_bars(terminal) as progress:
        drawing = progress.add_task("calibration", total=None)
        layers = progress.add_task("layers", total=None, visible=False)
        tuning = {
            name: progress.add_task(name, total=None, visible=False)
            for name in ("rounding", "original", "tuning")
        }

        def on_calibration(done: int, total: int) -> None:
            progress.update(drawing, completed=done, total=total)

        def on_manifest(manifest: Mapping[str, Any]) -> None:
            progress.finish(drawing)
            progress.remove_task(drawing)
            if not SETTINGS.quiet:
                terminal.print(calibration_table(manifest))
            progress.update(layers, completed=0, total=plan.sizes.layers, visible=True)

        def on_slower(reason: str) -> None:
            terminal.say(slower_line(reason), style="yellow")

        def on_layer(done: int, total: int) -> None:
            progress.update(layers, completed=done, total=total)

        def on_rounded(done: int, total: int) -> None:
            progress.update(tuning["rounding"], completed=done, total=total, visible=True)

        def on_original(done: int, total: int) -> None:
            progress.update(tuning["original"], completed=done, total=total, visible=True)

        def on_step(done: int, total: int) -> None:
            progress.update(tuning["tuning"], completed=done, total=total, visible=True)

        def on_stop() -> None:
            terminal.say("Stopping after this layer or step, to keep it; Ctrl-C again stops at once.")

        def on_abort(error: HybridError) -> None:
            # The process ends right after this, without leaving the blocks that it is in.
            progress.stop()
            screen = err() if terminal.file.closed else terminal
            print_error(error.message, error.remedy, screen=screen)
            if terminal.log_file is not None and not terminal.file.closed:
                terminal.say(f"The libraries' own output is in {terminal.log_file}")

        result = quantize(
            plan,
            on_calibration=on_calibration,
            on_manifest=on_manifest,
            on_slower=on_slower,
            on_layer=on_layer,
            on_rounded=on_rounded,
            on_original=on_original,
            on_step=on_step,
            on_stop=on_stop,
            on_abort=on_abort,
        )
    from gptq_hybrid.checkpoint import Checkpoint
    from gptq_hybrid.plan import serving

    written, place = Checkpoint.open(target), this_place()
    command = serving(written, place, vllm=installed_vllm(), plugin=plugin_installed())
    steps = [*serving_steps(command), Step("see what quantizing cost", f"qwen36 eval {source} {target}")]
    if as_json:
        print_json(_as_json(result), format="GPTQ", serve=command.line, steps=steps)
        return
    screen = out()
    print_summary(screen, result)
    print_memory(screen, command, str(target), written, place)
    note(
        "vLLM warns of each module whose float16 scales it loads as bfloat16. That is expected, and does no harm."
    )
    print_next(*steps)


def _print_plan(screen: Screen, plan: RunPlan) -> None:
    if not SETTINGS.quiet:
        table = Table("plan", "", show_header=False, box=None, pad_edge=False)
        for name, value in plan.facts:
            table.add_row(name, value)
        screen.print(table)
    for warning in plan.warnings:
        warn(warning)


def _print_dry_run(plan: RunPlan) -> None:
    from gptq_hybrid.quantize import estimate_seconds

    estimate = estimate_seconds(plan)
    step = Step("quantize it with the same command, without --dry-run")
    if SETTINGS.as_json:
        result = {
            "dry_run": True,
            "source": str(plan.request.source),
            "target": str(plan.request.target),
            "recipe": plan.request.recipe.name,
            "bytes": plan.sizes.output,
            "seconds": round(estimate.seconds),
            "seconds_from": estimate.source,
            "warnings": list(plan.warnings),
        }
        print_json(result, steps=[step])
        return
    screen = out()
    screen.say(
        f"{plan.request.source} can be quantized here: about {duration_text(estimate.seconds)}, "
        f"{size_text(plan.sizes.output)} in {plan.request.target}. Nothing was written."
    )
    screen.say(f"The time is a guess, good to a factor of two: {estimate.source}.")
    _print_plan(screen, plan)
    print_next(step, screen=screen)


def _as_json(result: QuantizeResult) -> dict[str, Any]:
    from gptq_hybrid.losses import count_flags, find_flags

    return {
        "dry_run": False,
        "target": str(result.target),
        "modules": len(result.records),
        "flags": count_flags(find_flags(list(result.records.values()))),
        "calibration": dict(result.calibration),
        "source_bytes": result.source_bytes,
        "target_bytes": result.target_bytes,
        "seconds": round(result.seconds, 1),
        "continued_layers": result.continued,
        "tuning": None if result.tuning is None else dict(result.tuning),
    }


def resolve_source(source: str) -> Path:
    """Return a local folder as it is; download a hub id, ``OWNER/NAME[@REVISION]``, unless it is in the cache.

    Raises:
        HybridError: neither a folder nor a repository that can be fetched.
    """
    path = Path(source)
    if path.exists() or source.count("/") != 1 or source.startswith((".", "~")):
        return path
    from huggingface_hub import snapshot_download

    try:
        name, _, revision = source.partition("@")
        return Path(snapshot_download(name, revision=revision or None))
    except Exception as error:
        raise HybridError(
            f"{source} is neither a folder here nor a repository that can be fetched: {error}",
            remedy="Give the folder that holds config.json, or check the name and the network.",
        ) from error


def slower_line(reason: str) -> str:
    """Say in one line that gptqmodel runs at its own speed, and why."""
    return f"warning: the speed-ups are off and gptqmodel runs at its own speed: {reason}"


def tuning_line(report: Mapping[str, Any]) -> str:
    """Say in one line what tuning came to, on texts that nothing was learned from."""
    checks = {check["step"]: check["kld"] for check in report["stopping_kld"]}
    before, after = report.get("stopping_kld_before_rounding", checks[0]), checks[report["step_taken"]]
    rounded = "stopping_kld_before_rounding" in report
    if not report["step_taken"] and not rounded:
        return (
            "Tuning brought nothing on the texts kept apart for stopping: scales and norms stay as they were."
        )
    if after >= before:
        return "Rounding codes again brought nothing on the texts kept apart: the checkpoint stays as it was."
    what = [f"Tuning, {report['step_taken']:,} steps"] if report["step_taken"] else []
    if rounded:
        what.insert(0, "Codes rounded again")
    return (
        f"{'; '.join(what)}: divergence on {report['stopping_documents']} documents kept "
        f"apart for stopping {before:.4f} → {after:.4f} nats a token ({after / before - 1:+.1%})"
    )


def calibration_table(manifest: Mapping[str, Any]) -> Table:
    """Tabulate documents and tokens by domain, and what was left out."""
    table = report_table(f"Calibration: {manifest['rows']:,} rows, {manifest['tokens']:,} tokens", "")
    table.add_column("domain", overflow="fold")
    for column in ("documents", "tokens", "share"):
        table.add_column(column, justify="right")
    table.add_column("left out", overflow="fold")
    domains = manifest["domains"]
    total = sum(domain["tokens"] for domain in domains.values())
    for name, domain in domains.items():
        dropped = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in domain["dropped"].items())
        share = f"{domain['tokens'] / total:.0%}"
        table.add_row(name, f"{domain['documents']:,}", f"{domain['tokens']:,}", share, dropped)
    exhausted = [
        source.get("domain", source["source"]) for source in manifest["sources"] if "exhausted" in source
    ]
    if exhausted:
        table.caption_line = f"Fewer rows than --samples: {', '.join(exhausted)} had no more."
    return table


def print_summary(screen: Screen, result: QuantizeResult) -> None:
    """Print what was written, errors by kind of module, what is worth a look."""
    from gptq_hybrid.losses import kinds_table, summary

    records = list(result.records.values())
    after = f" after {result.continued} layers done before" if result.continued else ""
    screen.say(
        f"{result.target}: {len(records)} modules quantized with {result.calibration['tokens']:,} calibration "
        f"tokens, {size_text(result.source_bytes)} → {size_text(result.target_bytes)}, in "
        f"{duration_text(result.seconds)}{after}"
    )
    screen.print(summary(records))
    if result.tuning is not None:
        screen.say(tuning_line(result.tuning))
    if not SETTINGS.quiet:
        screen.say("")
        screen.print(kinds_table(records))
    if result.draft_vocab is not None and not SETTINGS.quiet:
        screen.say(f"Draft vocabulary: {result.draft_vocab.summary}.")
