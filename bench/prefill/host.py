"""What a W4A16 linear costs the host, by the way it takes.

    python -m bench.prefill.host OUT.json [--layout marlin] [--rows 16] [--calls 40] [--rounds 25]

Microseconds that the host spends on a call, nothing waited for; medians of rounds in which the ways take turns. On
a GPU by the kernels themselves. On a CPU `_C::marlin_gemm` is a stand-in that does nothing, with that op's
arguments, behind the steps of vLLM 0.26's Python; Triton's launcher in C is left out; and matrices are as small as
they get (a product still takes torch longer there than to launch one takes on a GPU).

    straight          the stock kernel's op, its arguments at hand: what vLLM's own compiled graph calls
    vLLM's Python     the stock kernel's ``apply_weights``
    stock             our op, and a replay of the stock kernel's op
    stock, general    the same with a list of tensors
    exact, fp8        our op by these routes
"""

from __future__ import annotations

import argparse
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from bench.engine import environment
from bench.prefill.layers import build, random_weight, vllm_config
from bench.results import save
from vllm_qwen36_plugin.prefill import dispatch, expand, scratch, selftest
from vllm_qwen36_plugin.prefill.profile import Starts
from vllm_qwen36_plugin.prefill.shape import Shape

_GROUP = 128
# The 27B's in_proj_qkvz; with 128 MiB of scratch it takes 2 tiles, with a quarter of that 6.
_K, _N, _SCRATCH_MIB = 5120, 16384, 32
_SMALL = Shape("marlin", 128, 384, 4, _GROUP, "bfloat16")
Calls = dict[str, Callable[[], Any]]
_MARLIN = (
    "marlin_gemm(Tensor a, Tensor? c_or_none, Tensor b_q_weight, Tensor? b_bias_or_none, Tensor b_scales,"
    " Tensor? a_scales, Tensor? global_scale, Tensor? b_zeros_or_none, Tensor? g_idx_or_none,"
    " Tensor? perm_or_none, Tensor workspace, int b_type_id, SymInt size_m, SymInt size_n, SymInt size_k,"
    " bool is_k_full, bool use_atomic_add, bool use_fp32_reduce, bool is_zp_float) -> Tensor"
)
_library = torch.library.Library("qwen36_bench", "FRAGMENT")


@dataclass
class Case:
    """A loaded linear: its entry in the table, its layer, and what its stock kernel is called by."""

    linear: dispatch.Linear
    layer: Any
    tensors: list[torch.Tensor]
    fp8: torch.Tensor | None
    keep: Any = None


class _Marlin:
    """The steps of vLLM 0.26's MarlinLinearKernel, at whose end nothing is multiplied."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.workspace = torch.zeros(132, dtype=torch.int32)
        self.config = SimpleNamespace(act_type=torch.bfloat16, partition_weight_shape=(shape.k, shape.n))
        self.names = ("qweight", "scales", "qzeros", "g_idx")

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        words, scales, zeros, g_idx = (getattr(layer, name or "") for name in self.names)
        rows = x.reshape(-1, x.shape[-1])
        k, n = self.config.partition_weight_shape
        padded_k, padded_n = words.size(0) * 16, words.size(1) * (32 // 4) // 16
        assert (padded_k, padded_n, rows.size(0), x.device.type) == (k, n, x.shape[0], "cpu")
        assert self.config.act_type not in (torch.int8, torch.float8_e4m3fn)
        assert getattr(layer, "input_global_scale", None) is None
        out = torch.ops.qwen36_bench.marlin_gemm(
            rows, None, words, bias, scales, None, None, zeros, g_idx, layer.g_idx_sort_indices,
            self.workspace, 1, rows.shape[0], n, k, True, False, True, False,
        )  # fmt: skip
        return out.reshape((*x.shape[:-1], n))


def on_cpu() -> Case:
    """The stand-in; scratch for three tiles."""
    shape, results = _SMALL, {}

    def marlin_gemm(a: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(a) not in results:
            results[len(a)] = torch.zeros(len(a), shape.n, dtype=a.dtype)
        return results[len(a)]

    _library.define(_MARLIN)
    _library.impl("marlin_gemm", marlin_gemm, "CPU")
    layer = torch.nn.Module()
    tensors = {
        "qweight": torch.zeros(shape.k // 16, shape.n * 2, dtype=torch.int32),
        "scales": torch.ones(shape.k // _GROUP, shape.n, dtype=torch.bfloat16),
        **{name: torch.empty(0, dtype=torch.int32) for name in ("qzeros", "g_idx", "g_idx_sort_indices")},
    }
    for name, tensor in tensors.items():
        layer.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    kernel = _Marlin(shape)
    linear = dispatch.Linear(shape, kernel, ("qweight", "scales"), 0, 1, weakref.ref(layer))
    of_layer = [layer.qweight, layer.scales]
    linear.replays(selftest.replay_of(linear, of_layer))
    scratch.reserve(torch.device("cpu"), shape.k * shape.n * 2 // 3)
    torch.set_num_threads(1)  # a product of this size is slower by more
    return Case(linear, layer, of_layer, None, _without_a_gpu())


def _without_a_gpu() -> Any:
    """Triton's own Python down to the launcher in C, and no driver behind it."""
    import triton
    from triton.compiler import CompiledKernel

    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0)
    triton.runtime.driver.set_active(active)
    compiled = CompiledKernel.__new__(CompiledKernel)
    vars(compiled).update(
        module=1, function=1, packed_metadata=(4, 1, 0), _run=lambda *_: None, name="", src=None
    )
    stand_in = SimpleNamespace(launch=lambda *_, **__: compiled)

    class Jit:
        def __getitem__(self, grid: Any) -> Any:
            return stand_in.launch

    vars(expand)["_expand"] = Jit()
    return compiled


def on_gpu(layout: str) -> Case:
    """What vLLM builds; Marlin in place of Machete if asked for."""
    import os

    from vllm_qwen36_plugin.prefill.kernel import FP8_SCALES, RowDispatchKernel

    if layout == "marlin":
        os.environ["VLLM_DISABLED_KERNELS"] = "MacheteLinearKernel,AllSparkLinearKernel,HummingLinearKernel"
    qweight, scales = random_weight(_K, _N, _GROUP, torch.bfloat16, "cuda")
    with vllm_config(prefill="fp8", prefill_scratch_mib=_SCRATCH_MIB):
        kernel, layer = build(qweight, scales, RowDispatchKernel, _GROUP)
    linear = dispatch.get(kernel.shape.key)
    assert linear is not None
    assert linear.shape.layout == layout, linear.shape
    tensors = [getattr(layer, name) for name in kernel.names]
    return Case(linear, layer, tensors, getattr(layer, FP8_SCALES, None), kernel)


def ways(case: Case, x: torch.Tensor) -> Calls:
    """The ways of a call."""
    linear, tensors, n = case.linear, case.tensors, case.linear.shape.n
    words, scales = tensors[linear.words], tensors[linear.scales]
    dispatch._table.update(
        {
            "stock": replace(linear, order=(), starts=Starts(1, 1)),
            "exact": replace(linear, order=("exact",), starts=Starts(1)),
            "fp8": replace(linear, order=("fp8",), starts=Starts(1, 1)),
        }
    )
    listed = dispatch.op().default  # type: ignore[attr-defined]
    plain = dispatch.plain_op().default  # type: ignore[attr-defined]
    calls: Calls = {}
    if linear.template is not None:
        arguments = _ready(linear, x, tensors)
        calls["straight"] = lambda: linear.template.op(*arguments)
    calls |= {
        "vLLM's Python": lambda: linear.kernel.apply_weights(case.layer, x),
        "stock, general": lambda: listed(x, [*tensors], None, None, "stock", n),
        "stock": lambda: plain(x, words, scales, None, "stock", n),
        "exact": lambda: plain(x, words, scales, None, "exact", n),
    }
    if case.fp8 is not None:
        calls["fp8"] = lambda: plain(x, words, scales, case.fp8, "fp8", n)
    return calls


def _ready(linear: dispatch.Linear, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[Any]:
    """The arguments of the stock kernel's op, as a replay gives them."""
    seen: list[Any] = []

    def op(*arguments: Any) -> torch.Tensor:
        seen.extend(arguments)
        return x

    assert linear.template is not None
    replace(linear.template, op=op).bound(linear.kernel)(x, tensors)
    return seen


def times(calls: Calls, count: int, rounds: int, wait: Callable[[], None]) -> dict[str, dict[str, float]]:
    """Of each call its median and least microseconds over the rounds."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            call = calls[name]
            wait()
            begin = time.perf_counter()
            for _ in range(count):
                call()
            spent = time.perf_counter() - begin
            if turn:  # the first is to warm up
                found[name].append(spent / count * 1e6)
    wait()
    return {name: {"us": round(median(us), 2), "least": round(min(us), 2)} for name, us in found.items()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=("marlin", "machete"), default="marlin", help="on a GPU")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--calls", type=int, default=40, help="a round; more fill the GPU's queue")
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    with torch.inference_mode():
        case = on_gpu(args.layout) if cuda else on_cpu()
        shape = case.linear.shape
        x = torch.randn(args.rows, shape.k, dtype=torch.bfloat16, device="cuda" if cuda else "cpu")
        wait = torch.cuda.synchronize if cuda else lambda: None
        found = times(ways(case, x), args.calls, args.rounds, wait)
    result = {
        "environment": {**environment(), "processor": _processor()},
        "stand_in": not cuda,
        "settings": {"shape": shape.key, "rows": args.rows, "calls": args.calls, "rounds": args.rounds},
        "tiles": len(scratch.tiles(x.device, shape.k, shape.n, x.dtype)),
        "replayed": case.linear.template is not None,
        "ways": found,
    }
    for name, value in found.items():
        print(f"{name:32} {value['us']:8.2f} µs, least {value['least']:8.2f}")
    where = result["environment"]["device"] if cuda else f"{_processor()}, stand-ins"
    print(f"{where}; {shape.key}, {args.rows} rows, {result['tiles']} tiles")
    save(args.out, result)


if __name__ == "__main__":
    main()
