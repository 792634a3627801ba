"""cuBLAS's workspaces, which PyTorch keeps from the first GEMM on: 32 MiB on Hopper.

Changes: frees them; the next GEMM makes new ones.
Why: vLLM counts them as weights if a GEMM runs while it loads.
Versions: ``torch._C._cuda_clearCublasWorkspaces`` of PyTorch 2.11 and 2.13.
Checks: it is callable; otherwise nothing happens.
May go: when PyTorch has a public call.
"""

from __future__ import annotations

import torch


def release_workspaces() -> None:
    """Free the workspaces, if this PyTorch can."""
    release = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if callable(release):
        release()
