"""How commands say to serve a checkpoint: what its memory goes to, the line, and a first request."""

from __future__ import annotations

from gptq_hybrid.common.terminal import SETTINGS, Screen, Step, note
from gptq_hybrid.doctor.serve_line import ServeCommand


def serving_steps(command: ServeCommand) -> list[Step]:
    """Return what to do with a checkpoint that serves."""
    return [Step("serve it", command.line), Step("ask it", command.curl)]


def print_memory(screen: Screen, command: ServeCommand, checkpoint: str) -> None:
    """Say where the flags of memory come from, or how to get them."""
    found = command.fit
    if found is not None:
        screen.say(f"Memory: {found.text()}.")
        if not found.fits:
            screen.say(f"It does not fit this card. What would: qwen36 plan {checkpoint} --gpu CARD")
    elif not command.environment and not SETTINGS.quiet:
        note(
            "No GPU was found here, so the line has no flags of memory. "
            f"For those of a card: qwen36 check {checkpoint} --gpu 'RTX 4090'"
        )
