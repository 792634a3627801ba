"""Command-line options that commands of both packages have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .terminal import SETTINGS, ColorWhen

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print the result alone: no progress, notes or next step.")
]
Color = Annotated[
    ColorWhen,
    typer.Option(help="When to print in colour; auto: on a terminal, unless NO_COLOR is set."),
]


def with_output_options(command: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Give a command the options ``--quiet`` and ``--color``, and let :data:`SETTINGS` know how it prints.

    Args:
        command: a function that typer makes a command of. If it has a parameter ``as_json``, that is ``--json``.
        name: the words after ``qwen36``.
    """

    @functools.wraps(command)
    def run(*, quiet: bool, color: ColorWhen, **arguments: Any) -> Any:
        SETTINGS.command, SETTINGS.quiet, SETTINGS.color = name, quiet, color
        SETTINGS.as_json = bool(arguments.get("as_json", False))
        return command(**arguments)

    own = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = (
        inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
        inspect.Parameter("color", keyword, default=ColorWhen.AUTO, annotation=Color),
    )
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])  # type: ignore[attr-defined]
    return run
