"""Notes of what each process of a server decided. Workers decide most, and the API server has ``/metrics``.

They go through a file whose name is in the environment: it reaches every process that vLLM starts, whatever the
executor of this machine. Where vLLM runs several API servers, Prometheus has a folder for all processes, and the
notes go there.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "QWEN36_NOTES"
_kept: dict[str, Note] = {}


@dataclass(frozen=True, slots=True)
class Note:
    """What became of one path.

    Attributes:
        path: what it is about, such as ``drafts``.
        state: one or two words, such as ``w8`` or ``off``.
        detail: the reason, or what start-up logs about it.
    """

    path: str
    state: str
    detail: str = ""


def keep(made: Note) -> None:
    """Remember a note in this process."""
    _kept[made.path] = made


def append(made: Note, file: Path) -> None:
    """Add a note to a file of notes."""
    # One write of one line: appends of several processes do not mix.
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(asdict(made)) + "\n")


def own_notes() -> list[Note]:
    """Return the notes of this process."""
    return list(_kept.values())


def read_notes(file: Path) -> list[Note]:
    """Return the last note on each path in a file of notes, in the order of first notes."""
    found: dict[str, Note] = {}
    with suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                made = Note(**json.loads(line))
                found[made.path] = made
    return list(found.values())
