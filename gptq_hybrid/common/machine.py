"""Hardware and versions that a result was measured with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
