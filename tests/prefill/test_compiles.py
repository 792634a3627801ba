"""What `expand` launches, compiled for the GPUs it is for: Triton's compiler and ptxas need none."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from vllm_qwen36_plugin.prefill import expand  # noqa: E402
from vllm_qwen36_plugin.prefill.routes import FP8  # noqa: E402

TYPES = {
    torch.int32: "*i32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    FP8: "*fp8e4nv",
}
AMPERE, ADA, HOPPER = 80, 89, 90


@dataclass
class Launch:
    """Stands in for the kernel, and keeps what it was launched with."""

    kernel: Any
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] | None = None

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            self.arguments, self.options = arguments, options

        return launch

    def compiled(self, architecture: int) -> Any:
        """As Triton specializes a launch: pointers and numbers that 16 divides are known to be such."""
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        assert self.options is not None
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
            if name not in constants and (isinstance(value, torch.Tensor) or value % 16 == 0)
        }
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=divisible)
        options = {name: value for name, value in self.options.items() if name not in names}
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def _type(value: Any) -> str:
    return TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launch:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    launch = Launch(expand._expand)
    monkeypatch.setattr(expand, "_expand", launch)
    return launch


def launched(launch: Launch, layout: str, bits: int, out: torch.dtype, group_size: int) -> None:
    """The 27B's `qkv_proj`, one scratch buffer's worth, on no device."""
    k, n, columns = 5120, 14336, 6144
    groups = 1 if group_size == -1 else k // group_size
    scales = torch.float16 if out == torch.float16 else torch.bfloat16
    expand.expand(
        torch.empty(k * n * bits // 32, dtype=torch.int32, device="meta"),
        torch.empty(groups, n, dtype=scales, device="meta"),
        torch.empty(columns, k, dtype=out, device="meta"),
        columns,
        layout=layout,
        bits=bits,
        group_size=group_size,
        inverse=torch.empty(n, device="meta") if out == FP8 else None,
    )


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Of the one kernel in it, bytes a thread among them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.is_file():
        pytest.skip(f"{tool} is not there")
    (folder / "kernel.cubin").write_bytes(cubin)
    dump = subprocess.run(
        [tool, "--dump-resource-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump)}
    assert set(usage) == {"REG", "STACK", "LOCAL"}, dump
    return usage


LAUNCHES = [
    *(("marlin", 4, torch.bfloat16, 128, gpu) for gpu in (AMPERE, ADA, HOPPER)),
    *(("marlin", 8, torch.bfloat16, 128, gpu) for gpu in (AMPERE, HOPPER)),
    *(("machete", bits, torch.bfloat16, 128, HOPPER) for bits in (4, 8)),
    ("marlin", 4, torch.float16, -1, AMPERE),
    ("machete", 8, torch.float16, -1, HOPPER),
    *(("marlin", 4, FP8, 128, gpu) for gpu in (ADA, HOPPER)),
    *(("marlin", bits, FP8, -1, ADA) for bits in (4, 8)),
    *(("machete", bits, FP8, 128, HOPPER) for bits in (4, 8)),
]


@pytest.mark.parametrize(("layout", "bits", "out", "group_size", "gpu"), LAUNCHES)
def test_it_compiles_spills_nothing_and_moves_sixteen_bytes_at_a_time(
    launch: Launch, tmp_path: Path, layout: str, bits: int, out: torch.dtype, group_size: int, gpu: int
) -> None:
    launched(launch, layout, bits, out, group_size)
    compiled = launch.compiled(gpu)
    used = resources(compiled.asm["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    # Six blocks of 128 threads a multiprocessor. Triton 3.6 was measured with longer runs, and has fewer blocks.
    assert used["REG"] <= (80 if expand.BLOCK_K == 128 else 168)
    assert compiled.metadata.shared <= 48 << 10  # what every GPU grants unasked
    stores = re.findall(r"st\.global[\w.:]*", compiled.asm["ptx"])
    assert stores
    assert all(store.endswith(".v4.b32") for store in stores)
    assert "ld.global.v4.b32" in compiled.asm["ptx"]
