"""The plugin's commands of ``qwen36``."""

from __future__ import annotations

import typer


def add_commands(app: typer.Typer) -> None:
    """Add ``tune prefill`` and ``tune drafts``."""
    from .tune.drafts.command import tune_drafts
    from .tune.prefill.command import tune_prefill

    tune = typer.Typer(
        help="Measure this machine: kernels for prefill, or how many drafts pay.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    tune.command("prefill")(tune_prefill)
    tune.command("drafts")(tune_drafts)
    app.add_typer(tune, name="tune")
