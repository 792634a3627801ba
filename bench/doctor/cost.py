"""What `qwen36 check` costs on a checkpoint of the 27B's size: time, memory, bytes read, and requests over HTTP.

    python bench/doctor/cost.py [--repeat 5] [--out bench/doctor/cost.json]

The checkpoint (`bench/full_size.py`) has the real names, shapes and sizes; its files lie in the page cache. Three
figures of time: the command as a user runs it (a new process, bytecode cached), the same without the interpreter's
and libraries' start (`--version`), and `check()` itself in a process that has imported it. HTTP is a loopback
server without added latency, so its counts matter and its time does not.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from full_size import build

from gptq_hybrid.checkpoint import Report, check

QWEN36 = str(Path(sys.executable).with_name("qwen36"))
# VmHWM, and not getrusage: a child's ru_maxrss includes what its parent held when it forked.
_PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
"""
IN_PROCESS = (
    _PEAK
    + """
import sys, time
from gptq_hybrid.checkpoint import check
times = []
for _ in range(int(sys.argv[2])):
    begun = time.perf_counter()
    report = check(sys.argv[1], vllm="0.33")
    times.append((time.perf_counter() - begun) * 1e3)
assert report.verdict == "serves", report
print(min(times), sorted(times)[len(times) // 2], peak())
"""
)
COMMAND = (
    _PEAK
    + """
import sys
from gptq_hybrid.cli import main
try:
    main()
finally:
    print(peak(), file=sys.stderr)
"""
)


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP, with single ranges."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the figures are counted by the client."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        first, _, last = asked.partition("-")
        begin, end = int(first), min(int(last or size - 1), size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        self.send_header("Content-Length", str(end - begin + 1))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(begin)
            self.wfile.write(file.read(end - begin + 1))


def over_http(folder: Path) -> dict[str, Any]:
    """Bytes and requests of one check over loopback HTTP."""
    handler = functools.partial(RangeHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    begun = time.perf_counter()
    report = check(f"http://127.0.0.1:{server.server_port}/", vllm="0.33")
    seconds = time.perf_counter() - begun
    server.shutdown()
    return counts(report) | {"ms": round(seconds * 1e3)}


def counts(report: Report) -> dict[str, Any]:
    assert report.verdict == "serves", report
    return {"bytes_read": report.bytes_read, "requests": report.requests}


def command(repeat: int, *arguments: str, environment: dict[str, str]) -> dict[str, float]:
    """Median and least wall time of a command."""
    times = []
    for _ in range(repeat):
        begun = time.perf_counter()
        subprocess.run([QWEN36, *arguments], check=True, capture_output=True, env=environment)
        times.append((time.perf_counter() - begun) * 1e3)
    return {"median_ms": round(statistics.median(times)), "least_ms": round(min(times))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cost.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        folder.mkdir()
        checkpoint = build(folder)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(Path(scratch, "bytecode"))
        subprocess.run([QWEN36, "check", str(folder)], check=True, capture_output=True, env=environment)
        process = command(args.repeat, "check", str(folder), "--vllm", "0.33", environment=environment)
        empty = command(args.repeat, "--version", environment=environment)
        peak = subprocess.run(
            [sys.executable, "-c", COMMAND, "check", str(folder), "--vllm", "0.33"],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        ).stderr.split()[-1]
        inside = subprocess.run(
            [sys.executable, "-c", IN_PROCESS, str(folder), str(args.repeat)],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        ).stdout.split()
        local = check(folder, vllm="0.33")
        result = {
            "checkpoint": checkpoint,
            "command": process | {"peak_mib": round(float(peak))},
            "command_version_only": empty,
            "check_in_process": {
                "least_ms": round(float(inside[0])),
                "median_ms": round(float(inside[1])),
                "peak_mib": round(float(inside[2])),
            },
            "local": counts(local),
            "http": over_http(folder),
            "targets": {"ms": 300, "peak_mib": 100},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "load_average": round(os.getloadavg()[0], 1),
        }
    text = json.dumps(result, indent=1)
    args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
