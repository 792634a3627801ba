"""Whether this machine can be measured."""

from __future__ import annotations

from importlib.util import find_spec

from gptq_hybrid.common.errors import HybridError

# Ampere: below, the plugin leaves linears to vLLM.
_LEAST_CAPABILITY = (8, 0)
# Bytes of a GPU in use at the start that cannot all be this process's own context.
_BUSY = 2 << 30


def refuse_machine(fp8: bool | None) -> bool:
    """Whether 8-bit activations are measured: ``fp8``, or for None whether the GPU multiplies them.

    Raises:
        HybridError: this machine has no vLLM or no GPU to measure on, or ``fp8`` is more than that can.
    """
    if find_spec("vllm") is None:
        raise HybridError(
            "vLLM is not installed, and its kernels are what is measured",
            remedy="Run: pip install 'vllm-qwen36-plugin[serve]', where the model is to be served.",
        )
    import torch

    if not torch.cuda.is_available():
        raise HybridError(
            "there is no CUDA GPU to measure on",
            remedy="Run qwen36 tune on the machine that serves the model; nvidia-smi lists its GPUs.",
        )
    name, capability = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
    if capability < _LEAST_CAPABILITY:
        raise HybridError(
            f"{name} is older than Ampere (compute capability {capability[0]}.{capability[1]})",
            remedy="There the plugin leaves all linears to vLLM: there is nothing to tune.",
        )
    from vllm_qwen36_plugin.upstream import scaled_mm

    able = scaled_mm.supported(capability)
    if fp8 and not able:
        raise HybridError(
            f"{name} does not multiply FP8 (Ada, compute capability 8.9, and later do)",
            remedy="Leave --fp8 out.",
        )
    return able if fp8 is None else fp8


def in_use() -> list[str]:
    """A warning where others use the GPU: what is measured beside them is theirs too."""
    import torch

    free, total = torch.cuda.mem_get_info(0)
    if total - free < _BUSY:
        return []
    return [
        f"{(total - free) / 2**30:.1f} GiB of the GPU were in use before: times taken beside other work are too "
        "long. Stop it and run qwen36 tune again"
    ]
