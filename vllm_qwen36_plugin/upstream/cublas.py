"""cuBLAS's workspaces, which PyTorch keeps from the first GEMM on: 32 MiB on Hopper."""

from __future__ import annotations

import torch


def release_workspaces() -> None:
    """Give them back; the next GEMM makes new ones.

    vLLM counts them as weights if a GEMM runs while it loads. Does nothing where this PyTorch has no such call
    (2.11 and 2.13 have).
    """
    release = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if callable(release):
        release()
