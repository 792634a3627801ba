"""vLLM's further API servers (--api-server-count) build the same config again: what one has checked is passed on.

In the process that checked it counts for nothing, as files may have changed between two engines.
"""

from __future__ import annotations

import os


def note_passed(variable: str, model: str) -> None:
    """Tell child processes, by an environment variable, that ``model`` has passed."""
    os.environ[variable] = f"{os.getpid()}:{model}"


def passed_in_parent(variable: str, model: str) -> bool:
    """Whether this process is the child of one in which ``model`` has passed."""
    process, _, passed = os.environ.get(variable, "").partition(":")
    return passed == model and process == str(os.getppid())
