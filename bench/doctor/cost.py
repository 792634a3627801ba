"""What checks cost on a checkpoint of the 27B's size: `qwen36 check`, and the plugin in a process of vLLM.

    python -m bench.doctor.cost [--repeat 5]

The checkpoint (`bench/full_size.py`) has the real names, shapes and sizes: 2,399 tensors in six files. Its body is
sparse; the 0.85 GB MTP head is read through the page cache. Bytecode is cached, as after an installation.

`check`: the command as a user runs it, the interpreter's and libraries' start alone (`--version`), `check()` in a
process that has imported it, and bytes and requests over a loopback HTTP server.

`plugin`, in fresh processes that hold what a vLLM process holds when it loads plugins: ``register()``, and what a
server pays for the checks before start, of the MTP head and of act order. Look at processor time on a machine with
other work. Garbage collection leaves alone what was there before: going through vLLM's objects takes 0.4 s or more.
"""

from __future__ import annotations

import functools
import http.server
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

from bench.arguments import command_line
from bench.full_size import build
from bench.results import Json, save
from gptq_hybrid.doctor import Report, check

# VmHWM, and not getrusage: a child's ru_maxrss includes what its parent held when it forked.
_PEAK = """
import sys, time
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
"""
_IN_PROCESS = f"""{_PEAK}
from gptq_hybrid.doctor import check
times = []
for _ in range(int(sys.argv[2])):
    begun = time.perf_counter()
    report = check(sys.argv[1], vllm="0.33")
    times.append((time.perf_counter() - begun) * 1e3)
assert report.verdict == "serves", report
print(min(times), sorted(times)[len(times) // 2], peak())
"""
_COMMAND = f"""{_PEAK}
from gptq_hybrid.cli import main
try:
    main()
finally:
    print(peak(), file=sys.stderr)
"""
_VLLM = """
import gc, json, sys, time
from types import SimpleNamespace as N
import vllm.engine.arg_utils, vllm.model_executor.models.registry
import vllm_qwen36_plugin
def timed(call, *arguments):
    gc.freeze()
    begun, cpu = time.perf_counter(), time.process_time()
    call(*arguments)
    print("ms", (time.perf_counter() - begun) * 1e3, (time.process_time() - cpu) * 1e3)
load = N(load_format="auto", download_dir=None)
"""
# As the plugin's hooks do, these import a check when it fires.
_REGISTER = f"{_VLLM}\ntimed(vllm_qwen36_plugin.register)"
_MTP = f"""{_VLLM}
vllm_qwen36_plugin.register()
def check(config):
    from vllm_qwen36_plugin.mtp_guard.front import check_before_start
    check_before_start(config)
draft = N(model=sys.argv[1], revision=None, hf_config=N(architectures=["Qwen3_5MTP"]))
config = N(speculative_config=N(method="mtp", draft_model_config=draft), additional_config={{}}, load_config=load)
timed(check, config)
timed(check, config)
"""
_ACT_ORDER = f"""{_VLLM}
vllm_qwen36_plugin.register()
def check(config):
    from vllm_qwen36_plugin.act_order.front import check_before_start
    check_before_start(config)
quantization = json.load(open(sys.argv[1] + "/config.json"))["quantization_config"]
model = N(model=sys.argv[1], revision=None, quantization="auto_gptq", hf_text_config=None,
          hf_config=N(quantization_config=quantization))
timed(check, N(model_config=model, additional_config={{}}, lora_config=None, load_config=load,
               parallel_config=N(tensor_parallel_size=1)))
"""


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP; the tests' server reads whole files, which are 4 GB here."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or size - 1), size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        self.send_header("Content-Length", str(end - begin + 1))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(begin)
            self.wfile.write(file.read(end - begin + 1))


def over_http(folder: Path) -> Json:
    """Bytes and requests of one check over loopback HTTP."""
    handler = functools.partial(_Ranges, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        report = check(f"http://127.0.0.1:{server.server_port}/", vllm="0.33")
        server.shutdown()
    return counts(report)


def counts(report: Report) -> Json:
    assert report.verdict == "serves", report
    return {"bytes_read": report.bytes_read, "requests": report.requests}


def command(repeat: int, *arguments: str, environment: dict[str, str]) -> Json:
    """Median and least wall time of the command."""
    times = []
    for _ in range(repeat):
        begun = time.perf_counter()
        program = [str(Path(sys.executable).with_name("qwen36")), *arguments]
        subprocess.run(program, check=True, capture_output=True, env=environment)
        times.append((time.perf_counter() - begun) * 1e3)
    return {"median_ms": round(statistics.median(times)), "least_ms": round(min(times))}


def output(program: str, *arguments: str, environment: dict[str, str]) -> tuple[str, str]:
    """What a program printed, and what it wrote to standard error."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return done.stdout, done.stderr


def check_cost(folder: Path, repeat: int, environment: dict[str, str]) -> Json:
    """Of `qwen36 check`."""
    arguments = ("check", str(folder), "--vllm", "0.33")
    command(1, *arguments, environment=environment)
    peak = output(_COMMAND, *arguments, environment=environment)[1].split()[-1]
    least, median, own = output(_IN_PROCESS, str(folder), str(repeat), environment=environment)[0].split()
    return {
        "command": command(repeat, *arguments, environment=environment) | {"peak_mib": round(float(peak))},
        "version_only": command(repeat, "--version", environment=environment),
        "in_process": {
            "least_ms": round(float(least)), "median_ms": round(float(median)), "peak_mib": round(float(own)),
        },
        "local": counts(check(folder, vllm="0.33")),
        "http": over_http(folder),
    }  # fmt: skip


def plugin_cost(folder: Path, repeat: int, environment: dict[str, str]) -> Json:
    """Of the plugin in a process of vLLM."""

    def times(program: str) -> list[list[list[float]]]:
        """By repetition, by step: wall and processor time in ms."""
        printed = [output(program, str(folder), environment=environment)[0] for _ in range(repeat)]
        lines = [[line.split() for line in text.splitlines() if line.startswith("ms ")] for text in printed]
        return [[[float(value) for value in values[1:]] for values in steps] for steps in lines]

    def summary(samples: list[list[float]]) -> Json:
        wall, cpu = zip(*samples, strict=True)
        return {
            "wall_ms": round(statistics.median(wall), 1),
            "cpu_ms": round(statistics.median(cpu), 1),
            "least_wall_ms": round(min(wall), 1),
        }

    output(_MTP, str(folder), environment=environment)  # bytecode
    checks = times(_MTP)
    return {
        "register": summary([steps[0] for steps in times(_REGISTER)]),
        "first_mtp_check": summary([steps[0] for steps in checks]),
        "second_mtp_check": summary([steps[1] for steps in checks]),
        "first_act_order_check": summary([steps[0] for steps in times(_ACT_ORDER)]),
        "vllm": version("vllm"),
    }


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cost.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        folder.mkdir()
        result: Json = {"checkpoint": build(folder)}
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(Path(scratch, "bytecode"))
        for name, cost in (("check", check_cost), ("plugin", plugin_cost)):
            result[name] = cost(folder, args.repeat, environment)
            result[name]["load_average"] = round(os.getloadavg()[0], 1)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    save(args.out, result | {"machine": machine, "python": platform.python_version()})


if __name__ == "__main__":
    main()
