"""What the plugin costs: register() in a vLLM process, and the check before start on a 27B-sized checkpoint.

    python bench/register_cost.py [--repeat 5]

Prints JSON, medians in milliseconds; look at processor time on a machine that has other work. (a)
``register()`` in fresh processes that hold what a vLLM process holds when it loads plugins. (b) The first check
in such a process: what a server pays. The checkpoint has the real names, shapes and sizes (about 2,400 tensors,
six files); its body is sparse, the 0.85 GB head is written out with random finite values and read back through
the page cache. Bytecode is cached, as after an ordinary installation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, TensorLayout, layout_for

TEXT_27B = {
    "model_type": "qwen3_5_text",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "full_attention_interval": 4,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "vocab_size": 248320,
    "mtp_num_hidden_layers": 1,
    "tie_word_embeddings": False,
}
VISION_27B = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
    "out_hidden_size": 5120,
}
CONFIG = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "text_config": TEXT_27B,
    "vision_config": VISION_27B,
    "quantization_config": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "desc_act": False,
    },
}
SHARDS = 5
Tensor = tuple[str, str, tuple[int, ...]]
WIDTH = {"BF16": 2, "F16": 2, "I32": 4}

REGISTER = """
import sys, time
import vllm.engine.arg_utils, vllm.model_executor.models.registry
import vllm_qwen36_plugin
begun, cpu = time.perf_counter(), time.process_time()
vllm_qwen36_plugin.register()
print("ms", (time.perf_counter() - begun) * 1e3, (time.process_time() - cpu) * 1e3)
"""
CHECK = """
import sys, time
from types import SimpleNamespace as N
import vllm.engine.arg_utils, vllm.model_executor.models.registry
import vllm_qwen36_plugin
vllm_qwen36_plugin.register()
from vllm_qwen36_plugin._register import _check_mtp
draft = N(model=sys.argv[1], revision=None, hf_config=N(architectures=["Qwen3_5MTP"]))
config = N(speculative_config=N(method="mtp", draft_model_config=draft), additional_config={},
           load_config=N(load_format="auto", download_dir=None))
for _ in range(2):
    begun, cpu = time.perf_counter(), time.process_time()
    _check_mtp(config)
    print("ms", (time.perf_counter() - begun) * 1e3, (time.process_time() - cpu) * 1e3)
"""


def body_tensors(layout: TensorLayout) -> Iterable[Tensor]:
    for linear in layout.quantized:
        n, k = linear.out_features, linear.in_features
        yield f"{linear.name}.qweight", "I32", (k // 8, n)
        yield f"{linear.name}.qzeros", "I32", (k // 128, n // 8)
        yield f"{linear.name}.scales", "F16", (k // 128, n)
        yield f"{linear.name}.g_idx", "I32", (k,)
    for spec in (*layout.plain, *layout.vision):
        yield spec.name, "BF16", spec.shape


def write_file(path: Path, tensors: list[Tensor], *, random: bool) -> None:
    """A safetensors file: whole header, then a hole, or random bytes whose exponents are kept finite."""
    header: dict[str, Any] = {}
    offset = 0
    for name, dtype, shape in tensors:
        size = WIDTH[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        # 0x3c.. in every high byte: BF16 values of about 0.01 to 0.03.
        block = b"".join(bytes((byte, 0x3C)) for byte in os.urandom(1 << 20)) if random else b""
        for begin in range(0, offset if random else 0, max(1, len(block))):
            out.write(block[: offset - begin])
        out.truncate(8 + len(raw) + offset)


def build(folder: Path) -> dict[str, Any]:
    """The synthetic checkpoint; returns what it holds."""
    layout = layout_for(CONFIG)
    body = list(body_tensors(layout))
    head: list[Tensor] = [(spec.name, "BF16", spec.shape) for spec in layout.mtp]
    weight_map = {}
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        part = body[number * len(body) // SHARDS : (number + 1) * len(body) // SHARDS]
        write_file(folder / name, part, random=False)
        weight_map |= {tensor[0]: name for tensor in part}
    write_file(folder / MTP_FILE, head, random=True)
    weight_map |= {tensor[0]: MTP_FILE for tensor in head}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return {"tensors": len(weight_map), "files": len(sizes), "gb": round(sum(sizes) / 1e9, 2)}


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
    result = {
        "register": summary(registers, 50),
        "first_check": summary([c[0] for c in checks], 100),
        "second_check_in_the_same_process": summary([c[1] for c in checks], 100),
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
