"""Commands that are imported when they are run: ``qwen36 --help`` names them all and loads none."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

# Both spellings, in every command: click hands them down from the outermost.
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"]}
_TARGET = "_qwen36_target"


class LazyGroup(TyperGroup):
    """A group whose members that :func:`add_command` added are loaded when one is resolved."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of ``args``, and load it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else self._loaded(name, command), rest

    def load_all(self) -> None:
        """Load every member, for the pages that show all help texts."""
        for name, command in list(self.commands.items()):
            loaded = self._loaded(name, command)
            if isinstance(loaded, LazyGroup):
                loaded.load_all()

    def _loaded(self, name: str | None, command: Any) -> Any:
        target = getattr(command.callback, _TARGET, None)
        if target is None or name is None:
            return command
        from .options import with_output_options

        module, function = target.split(":")
        words = " ".join(filter(None, ("" if self.name == "qwen36" else self.name, name)))
        one = typer.Typer(rich_markup_mode=None, add_completion=False)
        one.command(name)(with_output_options(getattr(import_module(module), function), words))
        self.commands[name] = loaded = typer.main.get_command(one)
        return loaded


def add_command(app: typer.Typer, name: str, target: str, summary: str) -> None:
    """Add a command to ``app``, whose class is :class:`LazyGroup`, without importing it.

    Args:
        app: the application or a group of it.
        name: the word that runs it.
        target: ``MODULE:FUNCTION``, as in an entry point.
        summary: the first line of the function's docstring; a test compares the two.
    """

    def unloaded() -> None:
        raise AssertionError(f"{name} was run before it was loaded")

    setattr(unloaded, _TARGET, target)
    app.command(name, help=summary)(unloaded)
