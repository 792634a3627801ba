"""The expansion kernels that `test_gpu` needs, compiled by several processes into Triton's cache on disk.

    python -m tests.prefill.warm PART PARTS

On the host of an H100 Triton takes 4 s for one of the 44, one after another three minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from vllm_qwen36_plugin.prefill.expand import expand

STOCK = ("marlin", "machete")
GROUPS = {"marlin": (32, 64, 128, -1), "machete": (64, 128, -1)}
# Stock kernel, bits, group size, type.
EVERY = [
    *((stock, bits, group, "bfloat16") for stock in STOCK for bits in (4, 8) for group in GROUPS[stock]),
    *((stock, bits, 128, "float16") for stock in STOCK for bits in (4, 8)),
]
_PROCESSES = 8
Kind = tuple[str, int, int, str, bool]


def kinds(capability: tuple[int, int]) -> list[Kind]:
    """Those of `EVERY` on such a GPU, ``(stock, bits, group size, type, fp8)``; -1 for one group too."""
    groups = {
        (stock, bits, group, dtype)
        for stock, bits, size, dtype in EVERY
        for group in ((size, -1) if size == 128 else (size,))
        if stock == "marlin" or capability == (9, 0)
    }
    types = (False, True) if capability >= (8, 9) else (False,)
    return [(*one, fp8) for one in sorted(groups) for fp8 in types]


def launch(stock: str, bits: int, group: int, dtype: str, fp8: bool) -> None:
    """One kernel, on zeros."""
    k, n = 384, 256
    words = torch.zeros(k * n * bits // 32, dtype=torch.int32, device="cuda")
    scales = torch.ones(1 if group == -1 else k // group, n, dtype=getattr(torch, dtype), device="cuda")
    out = torch.empty(n, k, dtype=torch.float8_e4m3fn if fp8 else scales.dtype, device="cuda")
    inverse = torch.ones(n, device="cuda") if fp8 else None
    expand(words, scales, out, 0, layout=stock, bits=bits, group_size=group, inverse=inverse)


def all_at_once() -> None:
    """Compile all of this GPU's kinds. What fails is warned of: a test that needs it will say more."""
    parts = min(_PROCESSES, os.cpu_count() or 1)
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(part), str(parts)],
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(parts)
    ]
    for process in started:
        _, errors = process.communicate()
        if process.returncode:
            warnings.warn(f"not all kernels were compiled beforehand: {errors[-1000:]}", stacklevel=2)


def main() -> None:
    part, parts = map(int, sys.argv[1:])
    for kind in kinds(torch.cuda.get_device_capability())[part::parts]:
        launch(*kind)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
