"""How commands say to serve a checkpoint: what its memory goes to, the line, and a first request."""

from __future__ import annotations

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.terminal import SETTINGS, Screen, Step, note
from gptq_hybrid.doctor.place import Place
from gptq_hybrid.doctor.serve_line import ServeCommand
from gptq_hybrid.hooks import GpuProfile


def serving_steps(command: ServeCommand) -> list[Step]:
    """Return what to do with a checkpoint that serves."""
    return [Step("serve it", command.line), Step("ask it", command.curl)]


def print_memory(
    screen: Screen, command: ServeCommand, checkpoint: str, opened: Checkpoint | None, place: Place | None
) -> None:
    """Say where the flags of memory come from, or how to get them; and what states in 16 bits would bring.

    Args:
        screen: where to.
        command: the line that is shown.
        checkpoint: as the user named it.
        opened, place: what the line serves, and where.
    """
    found = command.fit
    if found is not None:
        screen.say(f"Memory: {found.text()}.")
        if not found.fits:
            screen.say(f"It does not fit this card. What would: qwen36 plan {checkpoint} --gpu CARD")
        elif opened is not None and isinstance(place, GpuProfile) and not SETTINGS.quiet:
            from gptq_hybrid.plan import about_states

            if (states := about_states(opened, int(place.memory_gib * (1 << 30)), found)) is not None:
                screen.say(states)
    elif not command.environment and not SETTINGS.quiet:
        note(
            "No GPU was found here, so the line has no flags of memory. "
            f"For those of a card: qwen36 check {checkpoint} --gpu 'RTX 4090'"
        )
