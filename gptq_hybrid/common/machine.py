"""Where figures came from: hardware and versions, to stand beside them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import gptq_hybrid

_LIBRARIES = ("torch", "transformers", "flash-linear-attention", "gptqmodel", "vllm")


def environment(device: str) -> dict[str, str]:
    """Machine and versions, for people; ``device`` is torch's name of what was computed on."""
    found = {"device": _device_name(device), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "vllm-qwen36-plugin": gptq_hybrid.__version__}


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
