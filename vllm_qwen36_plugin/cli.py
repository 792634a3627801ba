"""The plugin's commands of ``qwen36``: ``tune prefill``, ``tune drafts`` and ``contract``."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from gptq_hybrid.common.errors import HybridError


class TuneGroup(TyperGroup):
    """The two instruments; points at them when the word after ``tune`` is neither."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            raise HybridError(
                f"qwen36 tune has no command {args[0]!r}",
                remedy="For a profile of prefill run: qwen36 tune prefill [MODEL]\n"
                "For how many drafts to use run: qwen36 tune drafts MODEL PROMPTS.jsonl",
            )
        return super().resolve_command(ctx, args)


def add_commands(app: typer.Typer) -> None:
    """Add ``tune prefill``, ``tune drafts`` and ``contract``."""
    from .tune.drafts.command import tune_drafts
    from .tune.prefill.command import tune_prefill
    from .upstream.contract.command import contract

    tune = typer.Typer(
        cls=TuneGroup,
        help="Measure this machine: kernels for prefill, or how many drafts pay.",
        no_args_is_help=True,
        rich_markup_mode=None,
        # An option where a command belongs gets the same answer as any other word.
        context_settings={"ignore_unknown_options": True},
    )
    tune.command("prefill")(tune_prefill)
    tune.command("drafts")(tune_drafts)
    app.add_typer(tune, name="tune")
    app.command("contract")(contract)
