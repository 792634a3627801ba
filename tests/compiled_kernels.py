"""Every Triton kernel of this project, compiled for six GPUs that need not be there.

    python -m tests.compiled_kernels
    uv run --locked --with triton==3.6.0 python -m tests.compiled_kernels
    uv run --locked --with triton==3.6.0 pytest -n 0 tests/prefill/test_compiles.py

The first prints the table for the Triton that is installed, the others use another: vLLM 0.26 pins 3.6, 0.33 pins
3.8. Triton's compiler and ptxas need no GPU. A launch is recorded on tensors of no device, and compiled as Triton
would specialize it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import triton

from gptq_hybrid.upstream.speedups import _block_kernel
from vllm_qwen36_plugin.act_order import norm_kernel
from vllm_qwen36_plugin.prefill import activations, eight_bit_words, expand
from vllm_qwen36_plugin.verify_head import kernel as verify_head
from vllm_qwen36_plugin.verify_head.planes import Planes

FP8 = torch.float8_e4m3fn
TYPES = {
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int8: "*i8",
    FP8: "*fp8e4nv",
}
# A100; RTX 3090; RTX 4090, L40S; H100, H200; B200; RTX 5090.
TARGETS = (80, 86, 89, 90, 100, 120)
HAVE_E4M3 = (89, 90, 100, 120)
# Bytes of shared memory that a program may take, and registers of a multiprocessor (CUDA C++ Programming Guide,
# compute capabilities).
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
REGISTERS = 65536
# The 27B's `qkv_proj`, and as many of its columns as one scratch buffer takes.
K, N, COLUMNS = 5120, 14336, 6144


@dataclass
class Launch:
    """Stands in for a kernel, and keeps what it was launched with."""

    kernel: Any
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            self.arguments, self.options = arguments, options

        return launch

    def compiled(self, architecture: int) -> Any:
        """As Triton specializes a launch: pointers and numbers that 16 divides are known to be such."""
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        values = dict(zip(names, self.arguments, strict=False)) | {
            name: value for name, value in self.options.items() if name in names
        }
        assert list(values) == names
        constants = {
            parameter.name: values[parameter.name]
            for parameter in self.kernel.params
            if parameter.is_constexpr
        }
        signature = {
            name: "constexpr" if name in constants else _type(value) for name, value in values.items()
        }
        divisible = {
            (place,): [["tt.divisibility", 16]]
            for place, (name, value) in enumerate(values.items())
            if name not in constants and _in_sixteens(value)
        }
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=divisible)
        options = {name: value for name, value in self.options.items() if name not in names}
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _in_sixteens(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)


@dataclass(frozen=True)
class Used:
    """What a kernel takes: registers and spilled bytes of a thread, bytes of shared memory of a program."""

    registers: int
    spilled: int
    shared: int
    warps: int

    @property
    def programs(self) -> int:
        """Programs that a multiprocessor's registers are enough for."""
        # Given to warps in units of 256.
        return REGISTERS // (-(-self.registers * 32 // 256) * 256 * self.warps)


def used(compiled: Any) -> Used:
    """Read it off the cubin; skips a test where this Triton has no cuobjdump."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.is_file():
        pytest.skip(f"{tool} is not there")
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        dump = subprocess.run(
            [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump)}
    assert set(usage) == {"REG", "STACK", "LOCAL"}, dump
    return Used(
        usage["REG"],
        max(usage["STACK"], usage["LOCAL"]),
        compiled.metadata.shared,
        compiled.metadata.num_warps,
    )


@dataclass(frozen=True)
class Case:
    """One launch.

    Attributes:
        kernel: its name.
        what: of what it is launched on.
        record: launches it with the kernel replaced.
        targets: GPUs that it is for.
        programs: least number of programs whose registers a multiprocessor must have room for, with Triton 3.7 on.
        needs: patterns of instructions that must be in its PTX.
        none: patterns that must not.
    """

    kernel: str
    what: str
    record: Callable[[pytest.MonkeyPatch], Launch]
    targets: tuple[int, ...] = TARGETS
    programs: int = 1
    needs: tuple[str, ...] = ()
    none: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For people, and for a test's id."""
        return f"{self.kernel} {self.what}"


def replaced(patch: pytest.MonkeyPatch, module: Any, name: str) -> Launch:
    """Put a `Launch` in a kernel's place."""
    launch = Launch(getattr(module, name))
    patch.setattr(module, name, launch)
    return launch


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _expanding(
    layout: str, bits: int, out: torch.dtype, group_size: int
) -> Callable[[pytest.MonkeyPatch], Launch]:
    def record(patch: pytest.MonkeyPatch) -> Launch:
        launch = replaced(patch, expand, "_expand")
        groups = 1 if group_size == -1 else K // group_size
        expand.expand(
            _empty(K * N * bits // 32, dtype=torch.int32),
            _empty(groups, N, dtype=torch.float16 if out == torch.float16 else torch.bfloat16),
            _empty(COLUMNS, K, dtype=out),
            COLUMNS,
            layout=layout,
            bits=bits,
            group_size=group_size,
            inverse=_empty(N, dtype=torch.float32) if out == FP8 else None,
        )
        return launch

    return record


def _quantizing(k: int) -> Callable[[pytest.MonkeyPatch], Launch]:
    def record(patch: pytest.MonkeyPatch) -> Launch:
        launch = replaced(patch, activations, "_quantize_tokens")
        activations.quantize_tokens(_empty(8, k, dtype=torch.bfloat16))
        return launch

    return record


def _grouping(dtype: torch.dtype) -> Callable[[pytest.MonkeyPatch], Launch]:
    def record(patch: pytest.MonkeyPatch) -> Launch:
        launch = replaced(patch, activations, "_quantize_groups")
        activations.quantize_groups(_empty(8, K, dtype=torch.bfloat16), dtype)
        return launch

    return record


def _rearranging(order: eight_bit_words.Order) -> Callable[[pytest.MonkeyPatch], Launch]:
    def record(patch: pytest.MonkeyPatch) -> Launch:
        launch = replaced(patch, eight_bit_words, "_flatten" if order == "flat" else "_rearrange")
        out = _empty(K // 32, 4 * COLUMNS, dtype=torch.int32)
        eight_bit_words.rearrange(_empty(K * N // 8, dtype=torch.int32), out, COLUMNS, N, order)
        return launch

    return record


def norming(
    dtype: torch.dtype, *, add: bool, warps: int = norm_kernel.WARPS
) -> Callable[[pytest.MonkeyPatch], Launch]:
    """The norm that writes in act order, for the 27B."""

    def record(patch: pytest.MonkeyPatch) -> Launch:
        launch = replaced(patch, norm_kernel, "_norm")
        x, order = _empty(8, K, dtype=dtype), _empty(K, dtype=torch.int32)
        norm_kernel.launch(x, x if add else None, _empty(K, dtype=dtype), order, 1e-6, warps=warps)
        return launch

    return record


def _sweeping(patch: pytest.MonkeyPatch) -> Launch:
    launch = replaced(patch, _block_kernel, "_update")
    channels, width = N, _block_kernel.WIDTH
    block = [_empty(channels, width, dtype=torch.float32) for _ in range(4)]
    by_group = [_empty(40, channels, dtype=torch.float32) for _ in range(2)]
    hinv, group = _empty(width, width, dtype=torch.float32), _empty(width, dtype=torch.int32)
    _block_kernel.block_update(block[0], hinv, *by_group, group, *block[1:], 15)
    return launch


def _settling(name: str, rows: int) -> Callable[[pytest.MonkeyPatch], Launch]:
    """A kernel of verification, for the output head of the 27B."""

    def record(patch: pytest.MonkeyPatch) -> Launch:
        launches = {each: replaced(patch, verify_head, each) for each in VERIFYING}
        n, whole, real = 248320, torch.int32, torch.float32
        words, scales = _empty(n, K // 16, dtype=whole), _empty(K // 64, n, dtype=torch.bfloat16)
        planes = Planes(words, scales, _empty(n, dtype=real), _empty(n, dtype=real), 64)
        logits, hidden, weight = (
            _empty(*shape, dtype=torch.bfloat16) for shape in ((rows, n), (rows, K), (n, K))
        )
        found, listed = _empty(1, dtype=whole), _empty(rows * 8192, dtype=whole)
        verify_head.settle(logits, hidden, weight, planes, found, listed)
        return launches[name]

    return record


VERIFYING = ("_begin", "_refine", "_recompute", "_whole")
_LOADS, _STORES = r"ld\.global\.v4\.b32", r"st\.global\.v4\.b32"
_WIDE = r"ld\.global\.v4\.b32|cp\.async\.\w+\.shared\.global"
_NARROW_STORES = r"st\.global(?!\.v4\.b32)"
# On Ada Triton goes by FP16 and truncates to it: of random tokens 0.4 % of the values differ, the error by 0.04 %.
_TO_E4M3 = r"cvt\.rn\.satfinite\.e4m3x2\.f(32|16x2)"


def _expand_cases() -> Iterator[Case]:
    for layout, bits, out, group, targets in (
        ("marlin", 4, torch.bfloat16, 128, TARGETS),
        ("marlin", 8, torch.bfloat16, 128, TARGETS),
        ("marlin", 4, torch.float16, -1, (80, 86)),
        ("marlin", 4, FP8, 128, HAVE_E4M3),
        ("marlin", 8, FP8, 128, HAVE_E4M3),
        ("marlin", 4, FP8, -1, (89,)),
        ("marlin", 8, FP8, -1, (89,)),
        ("machete", 4, torch.bfloat16, 128, (90,)),
        ("machete", 8, torch.bfloat16, 128, (90,)),
        ("machete", 8, torch.float16, -1, (90,)),
        ("machete", 4, FP8, 128, (90,)),
        ("machete", 8, FP8, 128, (90,)),
    ):
        name = str(out).removeprefix("torch.").removesuffix("fn")
        what = f"{layout} w{bits} g{group} to {name}"
        needs = (_LOADS, _STORES, *((_TO_E4M3,) if out == FP8 else ()))
        # Of four warps, and 80 registers.
        yield Case("expand", what, _expanding(layout, bits, out, group), targets, 6, needs, (_NARROW_STORES,))


CASES = (
    *_expand_cases(),
    *(
        Case(
            "words for 8 bits", order, _rearranging(order), targets, 6, (_LOADS, _STORES), (_NARROW_STORES,)
        )
        for order, targets in (("plain", TARGETS), ("flat", TARGETS), ("signs", HAVE_E4M3))
    ),
    Case("groups to 8 bits", "int8", _grouping(torch.int8), TARGETS, 7, (_LOADS,)),
    Case("groups to 8 bits", "e4m3", _grouping(FP8), HAVE_E4M3, 7, (_TO_E4M3, _LOADS)),
    *(
        Case("tokens to e4m3", f"k {k}", _quantizing(k), HAVE_E4M3, 2 if k == 17408 else 7, (_TO_E4M3, _LOADS))
        for k in (5120, 6144, 17408)
    ),
    *(
        Case(
            "norm in act order", f"{name}, {'with' if add else 'no'} residual", norming(dtype, add=add),
            targets, 2, (_LOADS, _STORES, r"ld\.shared", r"bar\.sync"), (_NARROW_STORES,),
        )
        for dtype, name, targets in (
            (torch.bfloat16, "bf16", TARGETS), (torch.float16, "fp16", (89,)), (torch.float32, "fp32", (90,))
        )
        for add in (True, False)
    ),
    *(
        Case("verification", f"{name}, {rows} rows", _settling(name, rows), TARGETS, 1, (_WIDE,))
        for name in VERIFYING
        for rows in ((3, 48) if name in ("_refine", "_whole") else (3,))
    ),
    # Rounded one by one: no multiply is fused with an add.
    Case("GPTQ's block", "128 columns", _sweeping, TARGETS, 12, (r"div\.rn\.f32",), (r"\bfma\.rn\.f32\b",)),
)  # fmt: skip


def main() -> None:
    """Print registers, bytes spilled and KiB of shared memory, by kernel and target."""
    print(f"Triton {triton.__version__}: registers / bytes spilled / KiB of shared memory\n")
    columns = "".join(f"{f'sm_{target}':>12}" for target in TARGETS)
    print(f"{'kernel':44}{columns}")
    for case in CASES:
        with pytest.MonkeyPatch.context() as patch:
            launch = case.record(patch)
        cells = []
        for target in TARGETS:
            taken = used(launch.compiled(target)) if target in case.targets else None
            cells.append(f"{taken.registers}/{taken.spilled}/{taken.shared >> 10}" if taken else "")
        print(f"{case.name:44}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


if __name__ == "__main__":
    sys.exit(main())
