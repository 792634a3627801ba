"""The application: built-in commands, plugin commands, and how errors are printed."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

import gptq_hybrid
from gptq_hybrid.common.disk import writing_trouble
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.hooks import get_plugin_manager

from . import _check, _demo, _draft_vocab, _eval, _losses, _quantize, _repair, _sensitivity
from ._errors import print_error

BAD_INPUT = 2


def build_app() -> typer.Typer:
    """Build the Typer application with every installed command."""
    app = typer.Typer(
        name="qwen36",
        help="Quantize, check and serve Qwen3.5/3.6/3.8 hybrids as W4A16 GPTQ, MTP head included.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        # Markup would swallow the brackets of OWNER/NAME[@REVISION].
        rich_markup_mode=None,
    )

    @app.callback(invoke_without_command=True)
    def version(
        show: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
    ) -> None:
        if show:
            typer.echo(f"qwen36 {gptq_hybrid.__version__}")
            raise typer.Exit

    app.command("quantize")(_quantize.quantize_command)
    app.command("losses")(_losses.losses_command)
    app.command("check")(_check.check_command)
    app.command("repair")(_repair.repair_command)
    app.command("eval")(_eval.eval_command)
    app.command("sensitivity")(_sensitivity.sensitivity_command)
    app.command("draft-vocab")(_draft_vocab.draft_vocab_command)
    app.command("demo")(_demo.demo_command)
    get_plugin_manager().hook.qwen36_commands(app=app)
    return app


def main() -> None:
    """Run the command line. An error meant for people becomes one message on stderr; exit code 2 for bad input."""
    try:
        build_app()()
    except HybridError as error:
        print_error(Console(stderr=True), error)
        sys.exit(getattr(error, "exit_code", BAD_INPUT))
    except OSError as error:
        trouble = writing_trouble(error)
        if trouble is None:
            raise
        refused = HybridError(
            f"a file could not be written or read: {trouble}", remedy="Make room or access."
        )
        print_error(Console(stderr=True), refused)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted.")
        sys.exit(130)
