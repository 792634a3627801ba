"""``qwen36 env``."""

from __future__ import annotations

from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.terminal import SETTINGS, Step, note, out, print_next


def env_command(as_json: AsJson = False) -> None:
    """Print what a bug report needs.

    Versions, GPU, settings that matter, whether vLLM loads the plugin here, and which of its features are on or off
    and why. vLLM is imported in a process of its own, which takes some seconds. No token or key is printed.
    """
    from .look import look_around

    SETTINGS.as_json = as_json
    if not as_json:
        note("Loading the plugin as vLLM would ...")
    found = look_around()
    if as_json:
        print_json(found.as_json())
        return
    screen = out()
    for line in found.lines():
        screen.say(line)
    if found.why_not:
        print_next(Step(f"have vLLM load the plugin: {found.why_not}"))
    else:
        print_next(
            Step("paste this into a report; for a server that runs already", "qwen36 doctor http://HOST:PORT")
        )
