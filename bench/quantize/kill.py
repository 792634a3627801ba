"""`qwen36 quantize` of a slice of the 27B at full size: run twice, and killed with SIGKILL twice and continued.

    python -m bench.quantize.kill WORK OUT.json

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

from bench.arguments import command_line
from bench.engine import place
from bench.quantize.report import kills
from bench.quantize.slice import write_slice
from bench.results import Json, save

_KILL_AFTER = (1, 3)
_SETTINGS: Json = {"layers": 5, "samples": 64, "length": 512, "recipe": "reference"}
_MAIN = "import sys; sys.argv[0] = 'qwen36'; from gptq_hybrid.cli import main; sys.exit(main())"


def run(command: list[str], target: Path, log: Path, layers: int | None = None, delay: float = 0.0) -> Json:
    """Run into ``target``, or kill the run ``delay`` seconds after it has kept so many ``layers``.

    Raises:
        SystemExit: a run that was to end by itself failed; what it printed is in the message.
    """
    from gptq_hybrid.quantize.state import RunState, state_folder

    state, begin = RunState(state_folder(target)), time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command[:5], str(target), *command[5:]], stdout=out, stderr=subprocess.STDOUT
        )
        if layers is not None:
            while state.layers() < layers and process.poll() is None:
                time.sleep(0.002)
            time.sleep(delay)
            process.kill()
        code = process.wait()
    if layers is None and code:
        sys.exit(f"{log.stem} ended with exit code {code}:\n{log.read_text()[-3000:]}")
    seconds = round(time.monotonic() - begin, 1)
    reached = None if layers is None else state.layers()
    return {"seconds": seconds, "exit": code, "layers": reached, "target": target.exists()}


def differing(one: Path, other: Path) -> list[str]:
    """Names of files that only one folder has, or with other bytes."""
    names = sorted({path.name for folder in (one, other) for path in folder.iterdir()})
    equal, _, _ = filecmp.cmpfiles(one, other, names, shallow=False)
    return [name for name in names if name not in equal]


def measure(args: argparse.Namespace) -> Json:
    """All of it."""
    source = args.work / f"slice{'-tiny' if args.tiny else ''}"
    if not source.is_dir():
        write_slice(source, _SETTINGS["layers"], tiny=args.tiny)
    command = [
        sys.executable, "-c", _MAIN, "quantize", str(source), "--no-mtp", "--state-every", "1", "--calibration",
        "demo", "--recipe", _SETTINGS["recipe"], "--samples", str(_SETTINGS["samples"]),
        "--max-length", str(_SETTINGS["length"]),
    ]  # fmt: skip
    dice = random.Random(7)
    cases = [("whole", "whole", None), ("again", "again", None)]
    cases += [("killed", f"killed-{number}", layers) for number, layers in enumerate(_KILL_AFTER)]
    cases += [("killed", "continued", None)]
    runs = {
        name: run(command, args.work / target, args.work / f"{name}.log", layers, dice.uniform(0.0, 1.0))
        for target, name, layers in cases
    }
    return {
        "environment": place(),
        "settings": {**_SETTINGS, "tiny": args.tiny},
        "runs": runs,
        "files": len(list((args.work / "whole").iterdir())),
        "again_differs": differing(args.work / "whole", args.work / "again"),
        "continued_differs": differing(args.work / "whole", args.work / "killed"),
    }


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "work", "out")
    parser.add_argument("--tiny", action="store_true", help="a small model: to try this out on a CPU")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    result = measure(args)
    save(args.out, result)
    print(kills(result))


if __name__ == "__main__":
    main()
