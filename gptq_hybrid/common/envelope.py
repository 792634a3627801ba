"""The JSON that every command prints with ``--json``: one envelope, with the command's own result in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gptq_hybrid

from .errors import HybridError
from .terminal import SETTINGS, Step
from .versions import find_vllm, plugin_installed

TOOL = "qwen36"
# Of the envelope and the results: raised when a field goes or changes its meaning, not when one is added.
VERSION = 1


def envelope(
    result: Any,
    *,
    format: str | None = None,
    serve: str | None = None,
    steps: Sequence[Step] = (),
    vllm: str | None = None,
    plugin: bool | None = None,
    error: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the envelope of the command that runs, a JSON object.

    Args:
        result: what the command found or made; its schema is in ``gptq_hybrid/cli/schemas``.
        format: quantization format of the checkpoint that the command is about, if it is about one.
        serve: the shell line that serves it.
        steps: what to do next.
        vllm: the release that the result is about; the installed one if None.
        plugin: whether that release runs with this distribution's plugin; as installed if None.
        error: ``message`` and ``remedy`` of a command that failed; its ``result`` is null.
    """
    release = vllm or find_vllm()
    return {
        "schema": f"{TOOL}.{SETTINGS.command.replace(' ', '-')}/{VERSION}",
        "tool": TOOL,
        "command": SETTINGS.command,
        "version": gptq_hybrid.__version__,
        "vllm": release,
        "plugin": (release is not None and plugin_installed()) if plugin is None else plugin,
        "format": format,
        "serve": serve,
        "next": [{"what": step.what, "command": step.command} for step in steps],
        "error": None if error is None else dict(error),
        "result": result,
    }


def print_json(result: Any, **fields: Any) -> None:
    """Print the envelope of ``result`` on stdout; ``fields`` are those of :func:`envelope`."""
    filled = envelope(result, **fields)
    text = json.dumps(filled, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a name with half a character in it
        text = json.dumps(filled, indent=2)
    sys.stdout.write(text + "\n")


def print_json_error(error: HybridError) -> None:
    """Print the envelope of a command that failed."""
    print_json(None, error={"message": error.message, "remedy": error.remedy})
