"""A stranger's first hour on a machine without a GPU, from a fresh clone, as a terminal and as a pipe show it.

    python -m tests.cli.first_hour REPOSITORY FOLDER bench/first_hour/transcript.json

Clones REPOSITORY into FOLDER, types commands.toml there, and what `check` says to type. A quarter of an hour, 7 GB.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
import tomllib
from pathlib import Path

from bench.arguments import command_line
from bench.results import Json, save
from gptq_hybrid.common.machine import environment

ROOM = Path(__file__).parents[2] / "bench" / "first_hour"
TYPED = tomllib.loads((ROOM / "commands.toml").read_text(encoding="utf-8"))
_MOST = 60
_FIELDS = ("command", "watched", "code", "seconds", "lines")
# Escapes of terminals, and what is this machine's alone: a mirror of pip's, the kernel.
_NOT_SHOWN = re.compile(
    rf"\x1b\[[0-9;?]*[A-Za-z]|^WARNING: Location.*\n|{re.escape(platform.release())} ", re.M
)
_NEXT = "import json, sys; [print(step['command']) for step in json.load(sys.stdin)['next']]"


def shell(command: str, folder: Path, watched: str = "pipe") -> Json:
    """Run one command: the lines that it printed, its status, and how long it took."""
    program = ["bash", "-c", command]
    if watched == "terminal":
        program = ["script", "-qec", f"stty cols 80 rows 24; {command}", "/dev/null"]
    own = {"HF_HUB_OFFLINE": "1", "TERM": "dumb", "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}"}
    begun = time.perf_counter()
    run = subprocess.run(program, cwd=folder, env=os.environ | own, stdin=-3, stdout=-1, stderr=-2)
    seconds = round(time.perf_counter() - begun, 1)
    text = _NOT_SHOWN.sub("", run.stdout.decode(errors="replace")).replace(str(folder), "~/clone")
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.rstrip().split("\n")]
    if len(lines) > _MOST:
        lines[_MOST // 2 : -_MOST // 2] = [f"… {len(lines) - _MOST} lines …"]
    print(seconds, run.returncode, command, flush=True)
    return dict(zip(_FIELDS, (command, watched, run.returncode, seconds, lines), strict=True))


def steps(commands: list[list[str]], folder: Path) -> list[Json]:
    """Run commands as those who watch see them."""
    return [shell(command, folder, who) for command, watched in commands for who in watched.split()]


def serve_and_ask(folder: Path) -> list[Json]:
    """Serve the checkpoint with the line that `check` prints, and ask it with the line after that."""
    line, curl = shell(f'qwen36 check mine --json | python -c "{_NEXT}"', folder)["lines"]
    wait = "until curl -sf localhost:8000/health; do kill -0 $! || exit 1; sleep 1; done"
    alone = line.replace("vllm serve", "setsid vllm serve", 1)
    started = shell(f"{alone} > vllm.log 2>&1 & echo $! > pid; {wait}", folder)
    try:
        asked = steps([[f"{curl} -s", "pipe"], *TYPED["served"]], folder)
    finally:
        shell("kill -- -$(cat pid)", folder)
    return [{**started, "command": f"{line} &"}, *asked]


def main() -> None:
    """Command line."""
    given = command_line(__doc__, "repository", "folder", "out").parse_args()
    folder = given.folder.resolve() / "clone"
    subprocess.run(["git", "clone", "-q", given.repository.resolve(), folder], check=True)
    rows = [
        {"messages": [{"role": "assistant", "content": f"Answer {n}: drafts of tokens."}]} for n in range(20)
    ]
    (folder / "replies.jsonl").write_text("\n".join(map(json.dumps, rows)))
    hour = [*steps(TYPED["hour"], folder), *serve_and_ask(folder)]
    mistakes = [shell(command, folder) for command in TYPED["mistakes"]]
    save(given.out, {"machine": environment("cpu"), "hour": hour, "mistakes": mistakes})


if __name__ == "__main__":
    main()
