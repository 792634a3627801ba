"""Hardware and versions that a result was measured with."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return f"CPU, {_cpu_model()}, {os.cpu_count()} cores"


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
