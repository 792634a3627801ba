"""GEMMs in e4m3 for the shapes of the 27B, on one GPU: vLLM's, PyTorch's, and BF16 beside them.

    python -m bench.prefill.e4m3 OUT.json [--rows 1024 2048 8192]

    vllm          `cutlass_scaled_mm`, a scale a row and a column: what `fp8` multiplies with
    torch         `torch._scaled_mm` with the same scales, fast accumulation
    torch_exact   the same, accumulated in float32
    torch_tensor  with one scale a matrix
    bf16          `torch.nn.functional.linear`

Operands are normal numbers: on constant ones a GPU draws less power and is faster. TFLOP/s, from the median time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.results import Json, save


def rates(m: int, n: int, k: int) -> Json:
    """TFLOP/s by GEMM; text where one refuses."""
    import torch
    from triton.testing import do_bench
    from vllm import _custom_ops as ops

    e4m3 = torch.float8_e4m3fn
    rows, weight = (torch.randn(size, k, device="cuda").to(e4m3) for size in (m, n))
    row_scales, scales = (torch.rand(size, 1, device="cuda") + 0.5 for size in (m, n))
    one = torch.ones((), device="cuda")
    x, dense = rows.bfloat16(), weight.bfloat16()

    def scaled(row: Any, column: Any, fast: bool) -> Callable[[], Any]:
        return lambda: torch._scaled_mm(
            rows, weight.t(), row, column, out_dtype=torch.bfloat16, use_fast_accum=fast
        )

    calls: dict[str, Callable[[], Any]] = {
        "vllm": lambda: ops.cutlass_scaled_mm(rows, weight.t(), row_scales, scales, torch.bfloat16),
        "torch": scaled(row_scales, scales.t(), True),
        "torch_exact": scaled(row_scales, scales.t(), False),
        "torch_tensor": scaled(one, one, True),
        "bf16": lambda: torch.nn.functional.linear(x, dense),
    }
    found: Json = {}
    for name, call in calls.items():
        try:
            ms: float = do_bench(call, warmup=60, rep=200, return_mode="median")
        except RuntimeError as error:
            found[name] = str(error)[:200]
        else:
            found[name] = round(2 * m * n * k / ms / 1e9)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 2048, 8192])
    args = parser.parse_args()
    from bench.prefill.engine_facts import environment
    from bench.prefill.layers import MODULES

    result: Json = {"environment": environment(), "rows": []}
    for m in args.rows:
        for module in MODULES:
            of = {"m": m, "n": module.n, "k": module.k, "module": module.name}
            result["rows"].append(of | {"tflops": rates(m, module.n, module.k)})
            print(result["rows"][-1], flush=True)
            save(args.out, result)


if __name__ == "__main__":
    main()
