"""What the plugin costs: register() in a vLLM process, and the checks before start on a 27B-sized checkpoint.

    python bench/register_cost.py [--repeat 5]

Prints JSON, medians in milliseconds; look at processor time on a machine that has other work. (a)
``register()`` in fresh processes that hold what a vLLM process holds when it loads plugins. (b) The first check
in such a process: what a server pays; of the MTP head, and, in processes of its own, of act order. The checkpoint
has the real names, shapes and sizes (about 2,400 tensors, six files); its body is sparse (`full_size.py`), the
0.85 GB head is written out with random finite values and read back through the page cache. Bytecode is cached, as
after an ordinary installation. Garbage collection leaves alone what was there before: going through vLLM's objects
takes 0.4 s and more, and falls where it falls.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from full_size import build

REGISTER = """
import gc, sys, time
import vllm.engine.arg_utils, vllm.model_executor.models.registry
import vllm_qwen36_plugin
gc.freeze()
begun, cpu = time.perf_counter(), time.process_time()
vllm_qwen36_plugin.register()
print("ms", (time.perf_counter() - begun) * 1e3, (time.process_time() - cpu) * 1e3)
"""
CHECK = """
import gc, sys, time
from types import SimpleNamespace as N
import vllm.engine.arg_utils, vllm.model_executor.models.registry
import vllm_qwen36_plugin
vllm_qwen36_plugin.register()
from vllm_qwen36_plugin._register import _check_mtp
draft = N(model=sys.argv[1], revision=None, hf_config=N(architectures=["Qwen3_5MTP"]))
config = N(speculative_config=N(method="mtp", draft_model_config=draft), additional_config={},
           load_config=N(load_format="auto", download_dir=None))
gc.freeze()
for _ in range(2):
    begun, cpu = time.perf_counter(), time.process_time()
    _check_mtp(config)
    print("ms", (time.perf_counter() - begun) * 1e3, (time.process_time() - cpu) * 1e3)
"""
ACT_ORDER = """
import gc, json, sys, time
from types import SimpleNamespace as N
import vllm.engine.arg_utils, vllm.model_executor.models.registry
import vllm_qwen36_plugin
vllm_qwen36_plugin.register()
from vllm_qwen36_plugin._register import _check_act_order
quantization = json.load(open(sys.argv[1] + "/config.json"))["quantization_config"]
model = N(model=sys.argv[1], revision=None, quantization="auto_gptq", hf_text_config=None,
          hf_config=N(quantization_config=quantization))
config = N(model_config=model, additional_config={}, lora_config=None, parallel_config=N(tensor_parallel_size=1),
           load_config=N(load_format="auto", download_dir=None))
gc.freeze()
begun, cpu = time.perf_counter(), time.process_time()
_check_act_order(config)
print("ms", (time.perf_counter() - begun) * 1e3, (time.process_time() - cpu) * 1e3)
"""


Sample = tuple[float, float]


def milliseconds(bytecode: Path, program: str, *arguments: str) -> list[Sample]:
    """Wall and processor time of each step the program reports."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("ms ")]
    if not lines:
        raise RuntimeError(done.stderr)
    return [(float(wall), float(cpu)) for _, wall, cpu in lines]


def summary(samples: list[Sample], target: float) -> dict[str, float]:
    wall, cpu = (round(statistics.median(column), 1) for column in zip(*samples, strict=True))
    return {
        "wall_ms": wall,
        "cpu_ms": cpu,
        "least_wall_ms": round(min(w for w, _ in samples), 1),
        "target_ms": target,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as scratch:
        folder, bytecode = Path(scratch, "model"), Path(scratch, "bytecode")
        folder.mkdir()
        checkpoint = build(folder)
        milliseconds(bytecode, CHECK, str(folder))
        registers = [milliseconds(bytecode, REGISTER)[0] for _ in range(repeat)]
        checks = [milliseconds(bytecode, CHECK, str(folder)) for _ in range(repeat)]
        orders = [milliseconds(bytecode, ACT_ORDER, str(folder))[0] for _ in range(repeat)]
    result = {
        "register": summary(registers, 50),
        "first_check": summary([c[0] for c in checks], 100),
        "second_check_in_the_same_process": summary([c[1] for c in checks], 100),
        "first_act_order_check": summary(orders, 100),
        "checkpoint": checkpoint,
        "python": platform.python_version(),
        "vllm": version("vllm"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
