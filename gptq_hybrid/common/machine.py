"""Hardware and versions that a result was measured with."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# nvidia-smi wakes a sleeping driver, which can take seconds.
_SMI_SECONDS = 20
# Of NVIDIA's driver, of WSL's, of Tegra's and of AMD's.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu", "/dev/kfd")
_LIBRARIES = ("torch", "transformers", "flash-linear-attention", "gptqmodel", "vllm", "vllm-qwen36-plugin")


def environment(device: str) -> dict[str, str]:
    """Describe the machine and the installed versions, for people.

    Args:
        device: torch's name of the device that did the computing, such as ``cuda:0``.
    """
    description = {"device": _device_name(device), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            description[name] = version(name)
        except PackageNotFoundError:
            continue
    return description


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver describes it: ``memory_gib`` in GiB, ``capability`` such as ``(8, 9)`` for Ada."""

    name: str
    memory_gib: float
    capability: tuple[int, int]
    driver: str


def chosen_gpus() -> list[str] | None:
    """Return what has nvidia-smi show the GPUs that CUDA programs started here see; None if those are none.

    It counts cards by their place on the bus, CUDA the fastest first: with cards of two kinds they may differ.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return []
    names = [name.strip() for name in chosen.split(",")]
    if not all(re.fullmatch(r"\d+|GPU-[0-9a-f-]+", name) for name in names):
        # None, or a form that nvidia-smi does not take: parts of a card (MIG).
        return None if names in ([""], ["-1"]) else []
    return [f"--id={','.join(names)}"]


def gpus() -> list[Gpu]:
    """Ask NVIDIA's driver for the GPUs that programs here see, without CUDA; empty where there is no driver."""
    smi, chosen = shutil.which("nvidia-smi"), chosen_gpus()
    if smi is None or chosen is None:
        return []
    query = [
        smi,
        *chosen,
        "--query-gpu=name,memory.total,compute_cap,driver_version",
        "--format=csv,noheader,nounits",
    ]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)
        found = []
        for line in run.stdout.splitlines():
            name, mib, capability, driver = (part.strip() for part in line.rsplit(",", 3))
            major, minor = capability.split(".")
            found.append(Gpu(name, int(mib) / 1024, (int(major), int(minor)), driver))
    except (OSError, subprocess.SubprocessError, ValueError):  # a driver that is broken, or too old to say
        return []
    return found


def cpu_name() -> str:
    """The processor and the cores that the system shows."""
    return f"{_cpu_model()}, {os.cpu_count()} cores"


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return f"CPU, {cpu_name()}"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def may_have_gpu() -> bool:
    """Whether this machine may have a GPU that torch can use; False only where asking torch is certain to fail.

    Importing torch takes seconds. A Linux machine whose driver made no device file has none.
    """
    return "torch" in sys.modules or sys.platform != "linux" or any(map(os.path.exists, _GPU_DEVICES))
