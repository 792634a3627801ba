"""The plugin's commands of ``qwen36``: ``env``, ``contract``, ``tune prefill`` and ``tune drafts``."""

from __future__ import annotations

from typing import Any

import typer

from gptq_hybrid.common.commands import LazyGroup, add_command
from gptq_hybrid.common.errors import HybridError


class TuneGroup(LazyGroup):
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
    """Add ``env``, ``contract``, ``tune prefill`` and ``tune drafts``."""
    add_command(app, "env", f"{__package__}.env.command:env_command", "Print what a bug report needs.")
    add_command(
        app,
        "contract",
        f"{__package__}.upstream.contract.command:contract",
        "Look for what the project touches in a release.",
    )
    tune = typer.Typer(
        cls=TuneGroup,
        help="Measure this machine: kernels, or how many drafts pay.",
        no_args_is_help=True,
        rich_markup_mode=None,
        # An option where a command belongs gets the same answer as any other word.
        context_settings={"ignore_unknown_options": True},
    )
    package = f"{__package__}.tune"
    add_command(
        tune,
        "prefill",
        f"{package}.prefill.command:tune_prefill",
        "Time the linears of a model on this GPU.",
    )
    add_command(
        tune,
        "drafts",
        f"{package}.drafts.command:tune_drafts",
        "Find how many MTP drafts serve your prompts fastest.",
    )
    app.add_typer(tune, name="tune")
