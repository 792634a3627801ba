"""Ways to multiply Hessians against float64: their error, and that of weights quantized with them.

    python -m bench.quantize.hessian OUT.json

Inputs are BF16 and made up as a calibration's are: heavy-tailed, with a spectrum that falls off, a few channels a
hundred times the others, one that nearly repeats another. GPTQ itself runs on each Hessian, and its result is
judged by the Hessian of float64. `bf16 sums` is there to show what too little looks like: the same products, every
batch's sum rounded to BF16. Without a GPU, `tf32` and `half` are gptqmodel's own way and are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from bench.arguments import command_line
from bench.quantize.report import hessian as hessian_table
from bench.results import Json, save

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

INPUTS = ("gaussian", "heavy-tailed")
BASE = "float64"
# Inputs of the linear; batches, and tokens in each.
COLUMNS, BATCHES, LENGTH = 5120, 32, 2048


def made_up(kind: str, tokens: int, columns: int, device: str, seed: int) -> torch.Tensor:
    """Inputs of a linear, BF16 ``[tokens, columns]``; ``seed`` is of the tokens, channels stay the same."""
    import torch

    channels = torch.Generator().manual_seed(columns)
    drawn = torch.Generator().manual_seed(seed)
    rank = max(8, columns // 8)
    values = torch.randn(tokens, columns, generator=drawn)
    if kind == "heavy-tailed":
        mixing = torch.randn(rank, columns, generator=channels) / torch.arange(1, rank + 1)[:, None] ** 0.5
        values = 0.3 * values + torch.randn(tokens, rank, generator=drawn) @ mixing
        # Student's t with three degrees of freedom, by token.
        chi = torch.randn(tokens, 3, generator=drawn).square().mean(1, keepdim=True).sqrt()
        values = values / chi.clamp_min(0.05)
        outliers = torch.randperm(columns, generator=channels)[: max(1, columns // 512)]
        values[:, outliers] *= 100
        values[:, 1] = values[:, 0] + 1e-2 * values[:, 1]
    return values.to(torch.bfloat16).to(device)


def ways(cuda: bool) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """By name, what makes gptqmodel multiply that way; the first is what the others are judged by."""
    import torch

    from gptq_hybrid.upstream.speedups import hessian_products

    @contextmanager
    def replaced(gram: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        from gptqmodel.quantization.gptq import GPTQ

        before = GPTQ.compute_hessian_xtx
        GPTQ.compute_hessian_xtx = lambda solver, matrix: gram(matrix)
        try:
            yield
        finally:
            GPTQ.compute_hessian_xtx = before

    def in_float64(matrix: torch.Tensor) -> torch.Tensor:
        double = matrix.double()
        return (double.T @ double).float()

    def in_tf32(matrix: torch.Tensor) -> torch.Tensor:
        full, matmul = matrix.to(torch.float32), torch.backends.cuda.matmul
        # gptqmodel sets this one; PyTorch refuses to read `allow_tf32` after that.
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            return full.T @ full
        finally:
            matmul.fp32_precision = before

    by_name: dict[str, Callable[[], AbstractContextManager[None]]] = {
        BASE: lambda: replaced(in_float64),
        "ieee": lambda: hessian_products("ieee"),
        "bf16 sums": lambda: replaced(lambda matrix: (matrix.T @ matrix).to(torch.float32)),
    }
    if cuda:
        by_name |= {"tf32": lambda: replaced(in_tf32), "half": lambda: hessian_products("half")}
    return by_name


def quantized(
    weight: torch.Tensor, batches: list[torch.Tensor], settings: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Accumulate the Hessian of ``batches`` and quantize ``weight`` ``[rows, columns]``, both by gptqmodel.

    Returns:
        The Hessian, FP32 ``[columns, columns]``; the quantized weight.
    """
    import torch
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    linear.target_device = weight.device
    solver = GPTQ(linear, QuantizeConfig(**settings))
    solver.expected_nsamples = float(sum(len(batch) for batch in batches))
    solver.quantizer.configure(perchannel=True)
    for batch in batches:
        solver.add_batch(batch[None], torch.empty(0))
    hessian = solver.finalize_hessian(target_device=weight.device).clone()
    return hessian, solver.quantize()[0]


def compare(
    kind: str,
    device: str,
    columns: int = COLUMNS,
    rows: int = 2048,
    batches: int = BATCHES,
    length: int = LENGTH,
) -> Json:
    """One row of the table: all ways on one kind of inputs."""
    import torch

    inputs = [made_up(kind, length, columns, device, seed) for seed in range(1, batches + 1)]
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(rows, columns, generator=generator) * columns**-0.5).to(device)
    exact = torch.zeros(columns, columns, dtype=torch.float64, device=device)
    for batch in inputs:
        double = batch.double()
        exact += double.T @ double
    exact *= 2 / sum(len(batch) for batch in inputs)
    # Scales are of the weight as it is then: values differ only where codes do.
    settings = {
        "bits": 4, "group_size": 128, "sym": True, "desc_act": True, "static_groups": True, "damp_percent": 0.01,
        "offload_to_disk": False,
    }  # fmt: skip
    figures: dict[str, Json] = {}
    reference: tuple[torch.Tensor, float] | None = None
    for name, way in ways(device != "cpu").items():
        with way():
            hessian, result = quantized(weight, inputs, settings)
        delta = weight.double() - result.double()
        loss = float(((delta @ exact) * delta).sum())
        reference = reference or (result, loss)
        # Against the diagonal's geometric mean: what an entry's error means to the two columns it couples.
        scale = exact.diagonal().sqrt()
        figures[name] = {
            "error": float(((hessian.double() - exact) / (scale[:, None] * scale)).abs().max()),
            "loss_ratio": loss / reference[1],
            "codes_differ": float((result != reference[0]).double().mean()),
        }
        print(kind, name, figures[name], flush=True)
    return {"inputs": kind, "ways": figures}


def main() -> None:
    """The command line; the file is written after every kind of inputs."""
    out = command_line(__doc__, "out").parse_args().out
    from gptq_hybrid.common.machine import environment
    from gptq_hybrid.upstream import prepare_environment

    prepare_environment()
    import torch

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    result: Json = {
        "environment": environment(device),
        "columns": COLUMNS,
        "tokens": BATCHES * LENGTH,
        "rows": [],
    }
    for kind in INPUTS:
        result["rows"].append(compare(kind, device))
        save(out, result)
    print(hessian_table(result))


if __name__ == "__main__":
    main()
