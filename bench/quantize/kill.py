"""`qwen36 quantize` of a slice of the 27B at full size: run twice, and killed with SIGKILL twice and continued.

    python -m bench.quantize.kill WORK OUT.json [--layers 5] [--samples 64] [--length 512] [--recipe reference]

WORK gets the slice, three targets and what each run printed. Kills come within a second after the first and after
the third layer is kept. OUT.json says which files differ: of a run and its repetition, and of a run and a continued
one. Only ``quant_log.csv`` may, which holds seconds. What a layer takes is `bench.quantize.run`'s question.
"""

from __future__ import annotations

import argparse
import filecmp
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from bench.results import Json, save

_KILL_AFTER = (1, 3)
_SEED = 7
_MAIN = "import sys; sys.argv[0] = 'qwen36'; from gptq_hybrid.cli import main; sys.exit(main())"


class Runs:
    """Runs of one command line into targets of ``folder``."""

    def __init__(self, folder: Path, source: Path, more: list[str]) -> None:
        self._folder, self._source, self._more = folder, source, more
        self.seconds: dict[str, float] = {}

    def start(self, target: str, log: TextIO) -> subprocess.Popen[bytes]:
        """A process at work on ``target``."""
        command = [
            sys.executable, "-c", _MAIN, "quantize", str(self._source), str(self._folder / target),
            "--no-mtp", "--state-every", "1", *self._more,
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def finish(self, target: str, name: str) -> None:
        """A run to its end.

        Raises:
            SystemExit: it failed; what it printed is in the message.
        """
        path, begin = self._folder / f"{name}.log", time.monotonic()
        with path.open("w") as log:
            code = self.start(target, log).wait()
        self.seconds[name] = round(time.monotonic() - begin, 1)
        if code:
            sys.exit(f"{name} ended with exit code {code}:\n{path.read_text()[-3000:]}")

    def kill(self, target: str, name: str, layers: int, delay: float) -> Json:
        """Kill a run ``delay`` seconds after it has kept so many layers; what it left."""
        from gptq_hybrid.resume import RunState, state_folder

        state, begin = RunState(state_folder(self._folder / target)), time.monotonic()
        with (self._folder / f"{name}.log").open("w") as log:
            run = self.start(target, log)
            while state.layers() < layers and run.poll() is None:
                time.sleep(0.002)
            time.sleep(delay)
            run.kill()
            code = run.wait()
        self.seconds[name] = round(time.monotonic() - begin, 1)
        return {"exit": code, "layers": state.layers(), "target": (self._folder / target).exists()}


def differing(one: Path, other: Path) -> list[str]:
    """Names of files that only one folder has, or with other bytes."""
    names = {path.name for path in one.iterdir()} | {path.name for path in other.iterdir()}
    return [
        name
        for name in sorted(names)
        if not (one / name).exists()
        or not (other / name).exists()
        or not filecmp.cmp(one / name, other / name, shallow=False)
    ]


def measure(args: argparse.Namespace) -> Json:
    """All of it."""
    import torch

    from bench.quantize.slice import write_slice
    from gptq_hybrid.evaluate._environment import environment

    source = args.work / f"slice-{args.layers}{'-tiny' if args.tiny else ''}"
    if not source.is_dir():
        write_slice(source, args.layers, tiny=args.tiny)
    more = ["--recipe", args.recipe, "--calibration", "demo", "--samples", str(args.samples)]
    runs = Runs(args.work, source, [*more, "--max-length", str(args.length)])
    runs.finish("whole", "whole")
    runs.finish("again", "again")
    dice = random.Random(_SEED)
    kills = [
        runs.kill("killed", f"killed-{number}", layers, dice.uniform(0.0, 1.0))
        for number, layers in enumerate(_KILL_AFTER)
    ]
    runs.finish("killed", "continued")
    return {
        "environment": environment("cuda:0" if torch.cuda.is_available() else "cpu"),
        "settings": {name: getattr(args, name) for name in ("layers", "samples", "length", "recipe", "tiny")},
        "kills": kills,
        "seconds": runs.seconds,
        "files": sorted(path.name for path in (args.work / "whole").iterdir()),
        "again_differs": differing(args.work / "whole", args.work / "again"),
        "continued_differs": differing(args.work / "whole", args.work / "killed"),
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--recipe", default="reference")
    parser.add_argument("--tiny", action="store_true", help="a small model: to try this out on a CPU")
    return parser.parse_args(arguments)


def main() -> None:
    """Command line."""
    args = parsed()
    args.work.mkdir(parents=True, exist_ok=True)
    result = measure(args)
    save(args.out, result)
    from bench.quantize.report import kills

    print(kills(result))


if __name__ == "__main__":
    main()
