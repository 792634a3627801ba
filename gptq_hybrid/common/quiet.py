"""Keep a chatty library off the screen without losing its output."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import HybridError
from .terminal import Screen, err


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # The log may be on a full disk. What is left in the buffer comes out on the terminal.
        with suppress(OSError):
            stream.flush()


@contextmanager
def output_to_log(name: str, *, enabled: bool = True) -> Iterator[Screen]:
    """Send all output to stdout and stderr, of any thread or C library, to a log file until the block ends.

    Yields a screen that still writes to stderr: what is said while something runs is no result. If the block
    succeeds, or the log is empty, the log is removed; otherwise its path is printed. gptqmodel writes some
    200 KB of carriage returns for a four-layer toy.
    """
    if not enabled:
        yield err()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    try:
        handle, log = tempfile.mkstemp(prefix=f"qwen36-{name}-", suffix=".log")
    except OSError as error:
        for descriptor in saved:
            os.close(descriptor)
        raise HybridError(
            f"there is no room for a log: {error.strerror or error}", remedy="Name a folder with TMPDIR."
        ) from error
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    terminal = os.fdopen(os.dup(saved[1]), "w", encoding=sys.stderr.encoding)
    console = Screen(terminal)
    console.log_file = Path(log)
    try:
        yield console
    except BaseException:
        _flush()
        if Path(log).stat().st_size:
            console.say(f"The libraries' own output is in {log}")
        else:
            Path(log).unlink()
        raise
    else:
        Path(log).unlink()
    finally:
        _flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        terminal.close()
