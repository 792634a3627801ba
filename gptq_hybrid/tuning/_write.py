"""Write a tuned checkpoint: the packed one, with other scales and norms in the same places."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gptq_hybrid.common.atomic import building_directory, write_json_atomic
from gptq_hybrid.writer import refuse_faults, replace_tensors

from ._run import Tuned

REPORT = "tuning.json"


def link_files(source: str | Path, folder: Path) -> None:
    """Put the files of ``source`` into ``folder``: hard links where the disk allows, else copies."""
    for path in sorted(Path(source).iterdir()):
        if path.is_file():
            _link_or_copy(path, folder / path.name)


def write_tuned(checkpoint: str | Path, target: str | Path, tuned: Tuned, *, keep_mtp: bool) -> None:
    """Write ``checkpoint`` with the tensors of ``tuned`` to ``target``, all of it or nothing.

    Files that stay as they are become hard links where the disk allows; ``checkpoint`` is not changed.

    Raises:
        FileExistsError: ``target`` holds files.
        HybridError: the result fails the checks that serving relies on.
    """
    with building_directory(target) as folder:
        link_files(checkpoint, folder)
        replace_tensors(folder, dict(tuned.tensors))
        write_json_atomic(folder / REPORT, tuned.report)
        refuse_faults(folder, keep_mtp=keep_mtp)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
