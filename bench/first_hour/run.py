"""A stranger's first hour on a machine without a GPU, from a fresh clone, as a terminal and as a pipe show it.

    python -m bench.first_hour.run REPOSITORY FOLDER bench/first_hour/transcript.json

Clones REPOSITORY (its last commit) into FOLDER, installs it as README.md says, and types what the output of each
command tells to type next. Takes a quarter of an hour and 7 GB. Then the mistakes: what each of them costs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from bench.arguments import command_line
from bench.results import Json, save
from gptq_hybrid.common.machine import environment

UV = ".cache/uv/bin/uv"
INSTALL = f"python3 -m venv .cache/uv && .cache/uv/bin/pip install -q uv && {UV} sync --locked -q"
QUANTIZE = "qwen36 quantize demo/original mine --calibration demo --samples 16 --max-length 128"
EVAL = "qwen36 eval demo/original mine demo/quantized --data replies.jsonl --limit 20 --out eval"
# Command, and who watches.
BEFORE = [
    (INSTALL, "pipe"),
    ("qwen36 --version", "terminal pipe"),
    ("qwen36 --help", "terminal pipe"),
    ("qwen36 demo --keep demo", "pipe"),
    (f"{QUANTIZE} --dry-run", "terminal pipe"),
    (QUANTIZE, "pipe"),
    ("qwen36 check mine", "terminal pipe"),
    ("qwen36 check mine --gpu 'RTX 4090'", "pipe"),
    ("qwen36 losses mine", "terminal pipe"),
    (EVAL, "pipe"),
    (EVAL, "terminal"),
    ("qwen36 env", "terminal pipe"),
]
DURING = [
    ("qwen36 doctor localhost:8000", "terminal pipe"),
    ("qwen36 doctor localhost:8000 --json | head -12", "pipe"),
]
MISTAKES = [
    "qwen36 check nowhere",
    "qwen36 check mine --gpu Voodoo",
    "qwen36 doctor localhost:1",
    "qwen36 demo --recipe none",
    "qwen36 tune prefill",
    "qwen36 quantize demo/original other --calibration missing.jsonl",
    "qwen36 quantize demo/original /proc/other --calibration demo",
    "qwen36 quantize nowhere other",
    "qwen36 eval demo/original mine --data missing.jsonl",
    "qwen36 eval demo/original mine --data replies.jsonl --out /proc/eval",
    "qwen36 sensitivity demo/original --data replies.jsonl --out /proc/s",
    "qwen36 losses mine --plot /proc/l.png",
    "qwen36 draft-vocab mine --data missing.jsonl",
]
_MOST = 60
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shell(command: str, folder: Path, watched: str = "pipe") -> Json:
    """Run one command: the lines that it printed, its status, and how long it took."""
    typed = f"stty cols 80 rows 24; {command}" if watched == "terminal" else command
    program = ["script", "-qec", typed, "/dev/null"] if watched == "terminal" else ["bash", "-c", typed]
    path = f"{folder}/.venv/bin:{os.environ['PATH']}"
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "dumb", "PATH": path}
    begun = time.perf_counter()
    run = subprocess.run(
        program, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=-1, stderr=subprocess.STDOUT
    )
    seconds = round(time.perf_counter() - begun, 1)
    text = _ANSI.sub("", run.stdout.decode(errors="replace")).replace(str(folder), "~/clone")
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.rstrip().split("\n")]
    if len(lines) > _MOST:
        cut = f"… {len(lines) - _MOST} lines …"
        lines = [*lines[: _MOST // 2], cut, *lines[-_MOST // 2 :]]
    return {
        "command": command,
        "watched": watched,
        "code": run.returncode,
        "seconds": seconds,
        "lines": lines,
    }


def steps(commands: list[tuple[str, str]], folder: Path) -> list[Json]:
    """Run commands as those who watch see them."""
    made = []
    for command, watched in commands:
        for who in watched.split():
            made.append(shell(command, folder, who))
            print(made[-1]["seconds"], made[-1]["code"], command, flush=True)
    return made


def serve_and_ask(folder: Path) -> list[Json]:
    """Serve the checkpoint with the line that `check` prints, and ask it with the line after that."""
    read = "import json, sys; [print(step['command']) for step in json.load(sys.stdin)['next']]"
    line, curl = shell(f'qwen36 check mine --json | python -c "{read}"', folder)["lines"]
    # One command: the server lives as long as the shell waits for it.
    wait = "until curl -sf localhost:8000/health; do kill -0 $! || exit 1; sleep 1; done"
    alone = line.replace("vllm serve", "setsid vllm serve", 1)
    started = shell(f"{alone} > vllm.log 2>&1 & echo $! > pid; {wait}", folder)
    try:
        return [{**started, "command": f"{line} &"}, *steps([(f"{curl} -s", "pipe"), *DURING], folder)]
    finally:
        shell("kill -- -$(cat pid)", folder)


def main() -> None:
    """Command line."""
    given = command_line(__doc__, "repository", "folder", "out").parse_args()
    folder = given.folder.resolve() / "clone"
    shutil.rmtree(folder, ignore_errors=True)
    given.folder.mkdir(parents=True, exist_ok=True)
    clone = shell(f"git clone -q {given.repository.resolve()} {folder}", given.folder)
    text = [f"Answer {number}: drafts of tokens." for number in range(20)]
    rows = [{"messages": [{"role": "assistant", "content": answer}]} for answer in text]
    (folder / "replies.jsonl").write_text("\n".join(map(json.dumps, rows)))
    hour = [clone, *steps(BEFORE, folder), *serve_and_ask(folder)]
    result = {
        "machine": environment("cpu"),
        "hour": hour,
        "mistakes": [shell(c, folder) for c in MISTAKES],
    }
    save(given.out, result)


if __name__ == "__main__":
    main()
