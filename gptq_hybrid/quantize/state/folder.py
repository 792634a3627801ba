"""The folder of a run: who may use it, what is in it, and when it goes."""

from __future__ import annotations

import fcntl
import glob
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gptq_hybrid.checkpoint import read_json_object
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.upstream import finished_layers

from .manifest import refuse_other_run

_MANIFEST = "run.json"
_LOCK = "lock"
_STORE = "gptqmodel"
_UNTUNED = "untuned"
_TUNING = "tuning"
_FORMAT = 1


def state_folder(target: Path) -> Path:
    """Return ``DST.partial``: beside the target, on its disk, and under a name that shows in a listing."""
    return target.with_name(f"{target.name}.partial")


def folder_bytes(folder: Path) -> int:
    """Add up the sizes of all files in ``folder``; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of one run. ``folder`` need not exist."""

    folder: Path

    @property
    def store(self) -> Path:
        """Where gptqmodel keeps its part."""
        return self.folder / _STORE

    @property
    def untuned(self) -> Path:
        """Where a recipe with ``[tune]`` has its packed checkpoint; the folder is there once that is whole."""
        return self.folder / _UNTUNED

    @property
    def tuning(self) -> Path:
        """Where its tuning keeps states."""
        return self.folder / _TUNING

    @property
    def begun(self) -> bool:
        """Whether there is anything that a continuation need not do again."""
        return self.untuned.is_dir() or self.layers() > 0

    def drop_layers(self) -> None:
        """Throw gptqmodel's part away."""
        shutil.rmtree(self.store, ignore_errors=True)

    def layers(self) -> int:
        """Count the finished layers that a continuation need not do again.

        Raises:
            HybridError: the state is damaged.
        """
        return finished_layers(self.store)

    def manifest(self) -> dict[str, str]:
        """Read the items of the run (:mod:`.manifest`).

        Raises:
            HybridError: they cannot be read.
        """
        path = self.folder / _MANIFEST
        try:
            content = read_json_object(path)
        except (OSError, HybridError) as error:
            raise HybridError(
                f"{path} cannot be read: {error}",
                remedy="Begin anew with --restart, which throws the state away.",
            ) from error
        if content.get("format") != _FORMAT or not isinstance(content.get("run"), dict):
            raise HybridError(
                f"{path} is of another version of this program", remedy="Begin anew with --restart."
            )
        return {str(key): str(value) for key, value in content["run"].items()}

    def refuse_other(self, items: Mapping[str, str], *, partial: bool = False) -> None:
        """Refuse to continue from finished layers of another run.

        Args:
            items: of this run.
            partial: ``items`` lacks the calibration.

        Raises:
            HybridError: the layers are of another run, or the state is damaged.
        """
        if self.begun:
            refuse_other_run(self.folder, self.manifest(), items, partial=partial)

    def remove(self) -> None:
        """Throw the state away; the manifest goes last, so that half a removal is still recognised."""
        for part in (self.store, self.tuning, self.untuned, self.folder):
            shutil.rmtree(part, ignore_errors=True)


def untuned_folder(state: RunState | None, target: Path, stack: ExitStack) -> Path:
    """Return where the checkpoint that is to be tuned goes; without a state, where it goes when ``stack`` does."""
    if state is not None:
        return state.untuned
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.untuned-")
    return Path(stack.enter_context(scratch)) / _UNTUNED


@contextmanager
def open_state(target: Path, items: Mapping[str, str], *, restart: bool) -> Iterator[RunState]:
    """Open the state of the run into ``target``, to continue or to begin, locked against other processes.

    Removes what earlier attempts left and nothing refers to: modules that a killed run offloaded, and half a
    target.

    Args:
        target: of the run.
        items: its manifest.
        restart: throw an earlier state away first.

    Raises:
        HybridError: another process is at work on the state, it is of another run, or it is damaged.
    """
    state = RunState(state_folder(target))
    state.folder.mkdir(parents=True, exist_ok=True)
    with (state.folder / _LOCK).open("w") as lock:
        try:
            # The kernel releases it, however the process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HybridError(
                f"another process is quantizing into {target}",
                remedy="Wait for it, or choose another target.",
            ) from error
        if restart:
            for part in (state.store, state.tuning, state.untuned):
                shutil.rmtree(part, ignore_errors=True)
        state.refuse_other(items)
        if not state.begun:
            shutil.rmtree(state.store, ignore_errors=True)
            write_json_atomic(state.folder / _MANIFEST, {"format": _FORMAT, "run": dict(items)})
        for attempt in state.store.glob("attempt-*"):
            shutil.rmtree(attempt, ignore_errors=True)
        for half in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
            shutil.rmtree(half, ignore_errors=True)
        yield state
