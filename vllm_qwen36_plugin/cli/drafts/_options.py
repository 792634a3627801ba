"""The options of ``qwen36 tune`` that only ``--drafts`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptq_hybrid.checkpoint import HybridError

_PANEL = "With --drafts"

Drafts = Annotated[
    Path | None,
    typer.Option(
        metavar="PROMPTS.jsonl",
        help="Instead, measure how many MTP drafts serve these prompts fastest: messages, prompt or text, one a "
        "line. MODEL is served, and must be given.",
        rich_help_panel=_PANEL,
    ),
]
Numbers = Annotated[
    str | None,
    typer.Option(
        metavar="N,...", help="Numbers of drafts; 0 is none.  [default: 0,1,2,3,4]", rich_help_panel=_PANEL
    ),
]
Batches = Annotated[
    str | None,
    typer.Option(metavar="N,...", help="Requests in flight.  [default: 1,4,16]", rich_help_panel=_PANEL),
]
ContextNames = Annotated[
    str | None,
    typer.Option(
        "--context",
        metavar="NAME,...",
        help="short: prompts as they are; long: other prompts' text ahead of each.  [default: short,long]",
        rich_help_panel=_PANEL,
    ),
]
LongTokens = Annotated[
    int | None,
    typer.Option(
        min=16,
        help="Tokens of a prompt in a long context.  [default: 8192, or what the model takes]",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=2, help="Most tokens of an answer.  [default: 256]", rich_help_panel=_PANEL)
]
Temperature = Annotated[
    float | None,
    typer.Option(min=0.0, help="Of sampling; 0 is greedy.  [default: 0]", rich_help_panel=_PANEL),
]
Requests = Annotated[
    int | None,
    typer.Option(
        min=1, help="Requests of a repeat.  [default: twice the batch, at least 8]", rich_help_panel=_PANEL
    ),
]
Repeats = Annotated[
    int | None,
    typer.Option(min=2, max=99, help="Repeats, which tell noise.  [default: 3]", rich_help_panel=_PANEL),
]
VllmArgs = Annotated[
    str | None,
    typer.Option(
        metavar="'FLAG ...'",
        help="For vllm serve, as you will serve.  [default: what qwen36 check prints for this GPU]",
        rich_help_panel=_PANEL,
    ),
]

# By the names that ``qwen36 tune`` has for them.
ONLY_DRAFTS = (
    "numbers",
    "batches",
    "context_names",
    "long_tokens",
    "max_tokens",
    "temperature",
    "requests",
    "repeats",
    "vllm_args",
)
NOT_DRAFTS = ("dtype", "scratch_mib", "rows", "fp8")


def refuse_mixed(context: typer.Context, *, drafts: bool) -> None:
    """Refuse an option that only the other of the two measurements has.

    Raises:
        HybridError: one was given.
    """
    for name in NOT_DRAFTS if drafts else ONLY_DRAFTS:
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        option = "--" + name.removesuffix("_names").replace("_", "-")
        if drafts:
            raise HybridError(
                f"{option} is about the profile of linears, not about drafts",
                remedy=f"Leave {option} out, or run qwen36 tune without --drafts.",
            )
        raise HybridError(
            f"{option} says how to measure drafts, and there are no prompts to measure them on",
            remedy="Give them with --drafts PROMPTS.jsonl.",
        )
