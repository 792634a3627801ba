"""Refuse a machine that cannot be measured, and warn about one that others use."""

from __future__ import annotations

from importlib.util import find_spec

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.machine import may_have_gpu

# Ampere: below, the plugin leaves linears to vLLM.
_LEAST_CAPABILITY = (8, 0)
# Bytes in use on a GPU at the start; this process's own context takes fewer.
_BUSY = 2 << 30


def refuse_machine() -> None:
    """Refuse, before torch is imported, a machine without vLLM or certainly without a GPU.

    Raises:
        HybridError: it is one.
    """
    if find_spec("vllm") is None:
        raise HybridError(
            "vLLM is not installed, and its kernels are to be measured",
            remedy="Where the model is to be served, run: pip install 'vllm-qwen36-plugin[serve]'",
        )
    if not may_have_gpu():
        raise _no_gpu()


def _no_gpu() -> HybridError:
    return HybridError(
        "there is no CUDA GPU to measure on",
        remedy="Run qwen36 tune prefill on the machine that serves the model; nvidia-smi lists its GPUs.",
    )


def check_humming(a8: bool | None) -> bool:
    """Decide whether to measure ``a8``: as asked, or for None whether humming-kernels is installed.

    Raises:
        HybridError: it is asked for and not installed.
    """
    installed = find_spec("humming") is not None
    if a8 and not installed:
        raise HybridError(
            "a8 needs humming-kernels, which vLLM depends on from 0.26 on",
            remedy="Leave --a8 out, or: pip install 'humming-kernels[cu13]'",
        )
    return installed if a8 is None else a8


def check_machine(fp8: bool | None) -> bool:
    """Decide whether to measure 8-bit activations: ``fp8``, or for None whether the GPU multiplies them.

    Raises:
        HybridError: the machine has no vLLM or no GPU to measure on, or ``fp8`` is asked of a GPU without it.
    """
    refuse_machine()
    import torch

    if not torch.cuda.is_available():
        raise _no_gpu()
    name, capability = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
    if capability < _LEAST_CAPABILITY:
        raise HybridError(
            f"{name} is older than Ampere (compute capability {capability[0]}.{capability[1]})",
            remedy="On such a GPU the plugin leaves all linears to vLLM: there is nothing to tune.",
        )
    from vllm_qwen36_plugin.upstream import scaled_mm

    has_fp8 = scaled_mm.supported(capability)
    if fp8 and not has_fp8:
        raise HybridError(
            f"{name} does not multiply FP8 (Ada, compute capability 8.9, and later do)",
            remedy="Leave --fp8 out.",
        )
    return has_fp8 if fp8 is None else fp8


def busy_notes() -> list[str]:
    """Return a warning if others use the GPU, because times taken beside them are too long."""
    import torch

    free, total = torch.cuda.mem_get_info(0)
    if total - free < _BUSY:
        return []
    return [
        f"{(total - free) / 2**30:.1f} GiB of the GPU were in use before: times taken beside other work are too "
        "long. Stop it and run qwen36 tune prefill again"
    ]
