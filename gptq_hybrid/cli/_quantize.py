"""``qwen36 quantize``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gptq_hybrid.calibration import DEFAULT_CALIBRATION, DEFAULT_PACK, mix_names
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.quiet import output_to_log
from gptq_hybrid.common.tables import plain
from gptq_hybrid.doctor.serve_line import profile_for, serve_line
from gptq_hybrid.recipes import DEFAULT_RECIPE, load_recipe, recipe_names
from gptq_hybrid.writer import Limits

from ._errors import print_error

if TYPE_CHECKING:
    from gptq_hybrid.hooks import GpuProfile
    from gptq_hybrid.quantize import QuantizeResult


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
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what gptqmodel prints.")] = False,
) -> None:
    """Quantize a checkpoint to W4A16 GPTQ, MTP head included."""
    from gptq_hybrid.quantize import QuantizeRequest, plan_run, quantize

    plan = plan_run(
        QuantizeRequest(
            source=resolve_source(source),
            target=target,
            recipe=load_recipe(recipe),
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
    console = Console()
    table = Table("plan", "", show_header=False, box=None)
    for name, value in plan.facts:
        table.add_row(plain(name), plain(value))
    console.print(table)
    for warning in plan.warnings:
        console.print(f"[yellow]warning:[/] {plain(warning)}")
    with output_to_log("quantize", enabled=not verbose) as terminal, counting_bars(terminal) as progress:
        drawing = progress.add_task("calibration", total=None)
        layers = progress.add_task("layers", total=None, visible=False)

        def on_calibration(done: int, total: int) -> None:
            progress.update(drawing, completed=done, total=total)

        def on_manifest(manifest: Mapping[str, Any]) -> None:
            progress.remove_task(drawing)
            terminal.print(calibration_table(manifest))
            progress.update(layers, visible=True)

        def on_slower(reason: str) -> None:
            terminal.print(slower_line(reason), highlight=False, soft_wrap=True)

        def on_layer(done: int, total: int) -> None:
            progress.update(layers, completed=done, total=total)

        def on_stop() -> None:
            terminal.print(
                "Stopping after this layer, to keep it; Ctrl-C again stops at once.", highlight=False
            )

        def on_abort(error: HybridError) -> None:
            # The process ends right after this, without leaving the blocks that it is in.
            progress.stop()
            print_error(Console(stderr=True) if terminal.file.closed else terminal, error)
            if terminal.log_file is not None and not terminal.file.closed:
                terminal.print(
                    f"The libraries' own output is in {plain(str(terminal.log_file))}",
                    highlight=False,
                    soft_wrap=True,
                )

        result = quantize(
            plan,
            on_calibration=on_calibration,
            on_manifest=on_manifest,
            on_slower=on_slower,
            on_layer=on_layer,
            on_stop=on_stop,
            on_abort=on_abort,
        )
    print_summary(console, result)
    console.print("\nServe it:", highlight=False)
    console.print(plain(serve_line(target, _this_gpu())), highlight=False, soft_wrap=True)


def _this_gpu() -> GpuProfile | None:
    import torch

    return profile_for(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None


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
    return f"[yellow]warning:[/] the speed-ups are off and gptqmodel runs at its own speed: {plain(reason)}"


def calibration_table(manifest: Mapping[str, Any]) -> Table:
    """Tabulate documents and tokens by domain, and what was left out."""
    table = Table("domain", "documents", "tokens", "share", "left out")
    for column in table.columns[1:4]:
        column.justify = "right"
    table.title = f"Calibration: {manifest['rows']} rows, {manifest['tokens']} tokens"
    domains = manifest["domains"]
    total = sum(domain["tokens"] for domain in domains.values())
    for name, domain in domains.items():
        dropped = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in domain["dropped"].items())
        share = f"{domain['tokens'] / total:.0%}"
        table.add_row(plain(name), str(domain["documents"]), str(domain["tokens"]), share, dropped)
    exhausted = [
        source.get("domain", source["source"]) for source in manifest["sources"] if "exhausted" in source
    ]
    if exhausted:
        table.caption = f"Fewer rows than --samples: {plain(', '.join(exhausted))} had no more."
    return table


def print_summary(console: Console, result: QuantizeResult) -> None:
    """Print errors by kind of module, what is worth a look, sizes and time."""
    from gptq_hybrid.losses import kinds_table, summary

    records = list(result.records.values())
    console.print(kinds_table(records))
    console.print(summary(records))
    console.print(
        f"{len(records)} modules, {result.calibration['tokens']} calibration tokens, "
        f"{result.source_bytes / 2**20:.1f} → {result.target_bytes / 2**20:.1f} MiB, {result.seconds:.0f} s"
        + (f" after {result.continued} layers done before" if result.continued else ""),
        highlight=False,
    )
    if result.draft_vocab is not None:
        console.print(f"Draft vocabulary: {result.draft_vocab.summary}.", highlight=False)
