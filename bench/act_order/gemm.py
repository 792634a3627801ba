"""What act order costs, GEMM by GEMM: vLLM's own (up to 0.29), the plugin's, and none. One GPU, vLLM 0.22 to 0.29.

    python -m bench.act_order.gemm OUT.json [--m 1 3 16 64 1024] [--modules qkv down ...] [--no-compile]

Per module of the 27B (4 bit, groups of 128, BF16, random weights and a random act order), microseconds a call in a
CUDA graph of many calls on different copies of the weight, more of them than the L2 cache holds; medians of rounds
in which the variants take turns:

    none              Marlin without act order
    stock             Marlin with act order, as vLLM calls it
    ours              x.index_select(-1, order), then Marlin on sorted rows
    machete           Machete without act order, for information
    before+none       the operation before the linear, compiled, then Marlin without act order
    before+stock      the same, with act order
    before+ours       the same operation compiled with index_select behind it, then Marlin on sorted rows
    before+unchecked  the same without a check of the indices
    before+strided    the same with the order read in steps of two
    before+in_order   a norm that writes in order (`act_order.norm`), then Marlin on sorted rows
    op, op+...        that operation alone, where it is a norm; in_order/N with N warps, not compiled

What the plugin has is in `results.form_of`.

down has no `ours`: its permutation is in the columns of gate_up. Fails if the results of a variant are off by more
than `TOLERANCE` of the largest value.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.act_order import kernels
from bench.act_order.before import Compiled, Form, inputs, permuting, with_stride
from bench.act_order.results import FOLDED, MODULES, Module
from bench.act_order.timing import in_turns, recorded, spread
from bench.results import save

TOLERANCE = 0.02
# Bytes of weights that a graph goes through before it comes to the first again: 4 x the L2 cache of an H100.
_CYCLE = 200 << 20
_CALLS = 24
# Of a program of the norm that writes in order.
WARPS = (4, 8, 16, 32)
Gemms = dict[str, list[kernels.Gemm]]


def copies_of(module: Module) -> int:
    """So many that the L2 cache does not hold them."""
    return max(2, -(-_CYCLE // (module.k * module.n // 2)))


def prepare(module: Module, device: str) -> tuple[kernels.Packed, Gemms]:
    """The first weight as stored, for the check, and every copy for every kernel."""
    workspace = kernels.marlin_workspace()
    first: kernels.Packed | None = None
    gemms: Gemms = {"none": [], "stock": [], "machete": []}
    for _ in range(copies_of(module)):
        weight = kernels.random_packed(module.k, module.n, device)
        gemms["none"].append(kernels.marlin(weight, workspace, act_order=False))
        gemms["stock"].append(kernels.marlin(weight, workspace, act_order=True))
        machete = kernels.machete(weight)
        if machete:
            gemms["machete"].append(machete)
        first = first or weight
    assert first is not None
    return first, {name: found for name, found in gemms.items() if found}


def check(weight: kernels.Packed, reference: torch.Tensor, gemms: Gemms, m: int) -> dict[str, float]:
    """Largest error of each variant over the largest value, against float32 and of ours against stock."""
    device = str(weight.qweight.device)
    x = torch.randn(m, weight.shape[0], device=device, dtype=torch.bfloat16)
    expected = x.float() @ reference
    ours = gemms["none"][0](x.index_select(-1, kernels.order_of(weight)))
    stock = gemms["stock"][0](x)
    return {
        "ours": kernels.relative_error(ours, expected),
        "stock": kernels.relative_error(stock, expected),
        "ours_against_stock": kernels.relative_error(ours, stock),
    }


def check_compiled(
    module: Module, m: int, order: torch.Tensor, compiled: Compiled, device: str
) -> dict[str, float]:
    """Largest difference between an operation that permutes and gathering the plain one's output."""
    rows, weights = inputs(module.before, m, device)
    wanted = compiled.get(module.before, "plain")(*rows, *weights)[0].index_select(-1, order)
    return {
        form: kernels.relative_error(
            compiled.get(module.before, form, as_read(form, order))(*rows, *weights, as_read(form, order))[0],
            wanted,
        )
        for form in permuting(module.before)
    }


def as_read(form: Form, order: torch.Tensor) -> torch.Tensor:
    """The order as that form of the operation is given it."""
    return with_stride(order) if form == "strided" else order


def calls_of(
    module: Module, m: int, order: torch.Tensor, gemms: Gemms, compiled: Compiled | None, device: str
) -> dict[str, Callable[[int], object]]:
    """By variant: the call with copy number i."""
    x = torch.randn(m, module.k, device=device, dtype=torch.bfloat16)
    none, stock = gemms["none"], gemms["stock"]
    found: dict[str, Callable[[int], object]] = {"none": lambda i: none[i](x), "stock": lambda i: stock[i](x)}
    if module.name != FOLDED:
        found["ours"] = lambda i: none[i](x.index_select(-1, order))
    if "machete" in gemms:
        found["machete"] = lambda i: gemms["machete"][i](x)
    if compiled is None:
        return found
    rows, weights = inputs(module.before, m, device)
    plain = compiled.get(module.before, "plain")
    found["before+none"] = lambda i: none[i](plain(*rows, *weights)[0])
    found["before+stock"] = lambda i: stock[i](plain(*rows, *weights)[0])
    alone = module.before.startswith("norm")
    if alone:
        found["op"] = lambda i: plain(*rows, *weights)
    for form in permuting(module.before):
        read = as_read(form, order)
        taking = compiled.get(module.before, form, read)
        name = "ours" if form == "gathered" else form
        found[f"before+{name}"] = lambda i, taking=taking, read=read: none[i](  # type: ignore[misc]
            taking(*rows, *weights, read)[0]
        )
        if alone:
            found[f"op+{name}"] = lambda i, taking=taking, read=read: taking(  # type: ignore[misc]
                *rows, *weights, read
            )
    if alone and device.startswith("cuda"):
        from vllm_qwen36_plugin.act_order.norm_kernel import launch

        for warps in WARPS:
            found[f"op+in_order/{warps}"] = lambda i, warps=warps: launch(  # type: ignore[misc]
                *rows, *weights, order, 1e-6, warps=warps
            )
    return found


def measure(
    module: Module,
    m: int,
    order: torch.Tensor,
    gemms: Gemms,
    compiled: Compiled | None,
    repeats: int,
    device: str,
) -> dict[str, Any]:
    """Microseconds a call of each variant: median and median deviation."""
    copies = len(gemms["none"])
    count = copies * -(-_CALLS // copies)
    runs = {
        name: recorded([lambda i=i, call=call: call(i % copies) for i in range(count)], device)  # type: ignore[misc]
        for name, call in calls_of(module, m, order, gemms, compiled, device).items()
    }
    seconds = in_turns(runs, repeats, device)
    by_name = {name: spread([value / count * 1e6 for value in values]) for name, values in seconds.items()}
    return {
        "us": {name: round(middle, 3) for name, (middle, _) in by_name.items()},
        "deviation_us": {name: round(off, 3) for name, (_, off) in by_name.items()},
    }


def environment() -> dict[str, Any]:
    """Card and versions."""
    from gptq_hybrid.evaluate._environment import environment as versions

    properties = torch.cuda.get_device_properties(0)
    return {
        **versions("cuda:0"),
        "cuda": torch.version.cuda,
        "multiprocessors": properties.multi_processor_count,
    }


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--m", type=int, nargs="+", default=[1, 3, 16, 64, 1024])
    names = [module.name for module in MODULES]
    parser.add_argument("--modules", nargs="+", default=names, choices=names, metavar="MODULE")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled variants")
    return parser.parse_args(arguments)


def main() -> None:
    """Command line."""
    args = parsed()
    device = "cuda"
    torch.manual_seed(0)
    compiled = None if args.no_compile else Compiled(device)
    result: dict[str, Any] = {"environment": environment(), "repeats": args.repeats, "rows": [], "errors": []}
    begin = time.perf_counter()
    for module in (module for module in MODULES if module.name in args.modules):
        weight, gemms = prepare(module, device)
        reference, order = kernels.dequantized(weight), kernels.order_of(weight)
        for m in args.m:
            row: dict[str, Any] = {"module": module.name, "m": m, "copies": len(gemms["none"])}
            row["error"] = check(weight, reference, gemms, m)
            try:
                if compiled and module.name != FOLDED:
                    row["error"] |= check_compiled(module, m, order, compiled, device)
                row |= measure(module, m, order, gemms, compiled, args.repeats, device)
            except Exception as error:  # The other figures are worth having; the exit code tells.
                if compiled is None:
                    raise
                result["errors"].append(f"{module.name}, M {m}, compiled: {error!r}"[:2000])
                print(result["errors"][-1], flush=True)
                row |= measure(module, m, order, gemms, None, args.repeats, device)
            if max(row["error"].values()) > TOLERANCE:
                result["errors"].append(f"{module.name}, M {m}: wrong result, {row['error']}")
            result["rows"].append(row)
            save(args.out, result)
            times = "  ".join(f"{name} {us:.2f}" for name, us in row["us"].items())
            print(f"{time.perf_counter() - begin:6.1f} s  {module.name} M {m}: {times}", flush=True)
        del weight, gemms, reference
        gc.collect()
        torch.cuda.empty_cache()
    from bench.act_order.tables import gemm_extras, gemm_norms, gemm_times, gemm_total

    tables = (gemm_times, gemm_norms, gemm_extras, gemm_total)
    print("\n\n".join(table(result) for table in tables), flush=True)
    if result["errors"]:
        sys.exit("\n".join(result["errors"]))


if __name__ == "__main__":
    main()
