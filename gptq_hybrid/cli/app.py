"""The application: built-in commands, plugin commands, and how errors are printed.

Imports little: ``qwen36 --version``, ``--help`` and the completion of a shell wait for what stands here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import gptq_hybrid
from gptq_hybrid.common.disk import writing_trouble
from gptq_hybrid.common.errors import HybridError

if TYPE_CHECKING:
    import typer

BAD_INPUT = 2
# Name, module and function, and the first line of that function's docstring.
COMMANDS = (
    ("quantize", "_quantize:quantize_command", "Quantize a checkpoint to W4A16 GPTQ, MTP head included."),
    ("losses", "_losses:losses_command", "Say which modules were quantized badly."),
    ("check", "_check:check_command", "Say whether checkpoints will serve with vLLM and MTP."),
    (
        "plan",
        "_plan:plan_command",
        "Say what fits a GPU, and with which flags.",
    ),
    ("doctor", "_doctor:doctor_command", "Say what a running server does, and what to change."),
    ("repair", "_repair:repair_command", "Rebuild the index, correct the config, graft a lost head."),
    ("eval", "_eval:eval_command", "Measure how far checkpoints are from their original."),
    ("sensitivity", "_sensitivity:sensitivity_command", "Measure which modules cost most when quantized."),
    ("draft-vocab", "_draft_vocab:draft_vocab_command", "Rank tokens by how often replies use them."),
    ("receipt", "_receipt:receipt_command", "Measure what a checkpoint does, so that others can check it."),
    ("card", "_card:card_command", "Write a model card from what is known of a checkpoint."),
    ("demo", "_demo:demo_command", "Build, quantize and serve a small checkpoint with MTP."),
)


def build_app() -> typer.Typer:
    """Build the Typer application with every installed command; each is imported when it is run."""
    import typer

    from gptq_hybrid.common.commands import CONTEXT_SETTINGS, LazyGroup, add_command
    from gptq_hybrid.hooks import get_plugin_manager

    app = typer.Typer(
        name="qwen36",
        cls=LazyGroup,
        help="Quantize, check and serve Qwen3.5/3.6/3.8 hybrids as W4A16 GPTQ, MTP head included.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT_SETTINGS,
        # Markup would swallow the brackets of OWNER/NAME[@REVISION].
        rich_markup_mode=None,
    )

    @app.callback(invoke_without_command=True)
    def version(
        show: bool = typer.Option(
            False, "--version", "-V", help="Print the version and exit.", is_eager=True
        ),
    ) -> None:
        if show:
            print_version()
            raise typer.Exit

    for name, target, summary in COMMANDS:
        add_command(app, name, f"gptq_hybrid.cli.{target}", summary)
    get_plugin_manager().hook.qwen36_commands(app=app)
    return app


def print_version() -> None:
    """Print the program's name and version."""
    sys.stdout.write(f"qwen36 {gptq_hybrid.__version__}\n")


def main() -> None:
    """Run the command line. An error meant for people becomes one message on stderr; exit code 2 for bad input."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        print_version()
        return
    try:
        build_app()()
    except HybridError as error:
        _report(error)
        sys.exit(getattr(error, "exit_code", BAD_INPUT))
    except OSError as error:
        trouble = writing_trouble(error)
        if trouble is None:
            raise
        refused = HybridError(
            f"a file could not be written or read: {trouble}", remedy="Make room or access."
        )
        _report(refused)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)


def _report(error: HybridError) -> None:
    from gptq_hybrid.common.terminal import SETTINGS, print_error

    if SETTINGS.as_json:
        from gptq_hybrid.common.envelope import print_json_error

        print_json_error(error)
    print_error(error.message, error.remedy)
