"""How an error meant for people is printed."""

from __future__ import annotations

from rich.console import Console

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.tables import plain


def print_error(console: Console, error: HybridError) -> None:
    """Print what is wrong, and what to do about it."""
    # Wrapped only by the terminal: a path or a command that we break in two lines cannot be copied.
    console.print(f"[bold red]Error:[/] {plain(error.message)}", highlight=False, soft_wrap=True)
    if error.remedy:
        console.print(plain(error.remedy), highlight=False, soft_wrap=True)
