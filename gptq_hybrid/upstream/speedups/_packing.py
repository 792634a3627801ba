"""Packing quantized weights on the GPU, to the bytes of gptqmodel's CPU packer.

gptqmodel 7.6.0 packs a module on one core while the next modules are quantized. Finishing the modules of five
layers of the 27B kept threads busy for 53 s, of a run of 28 s on an H200 with the rest of
:func:`~gptq_hybrid.upstream.speedups`, and threads that wait for Python's lock slowed down the sweep: 2.7 s of it
became 4.3 s (bench/quantize/run-before.json). Its own ``pack_impl="gpu"`` launches nine kernels for every 32
inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from threading import Lock
from typing import TYPE_CHECKING, Any

from gptq_hybrid.upstream.gptqmodel import moved

from ._moves import Departures

if TYPE_CHECKING:
    import torch

_ARGUMENTS = ("self", "linear", "scales", "zeros", "g_idx", "block_in", "workers")
# Weights at a time: some 100 MB of the GPU, beside a solver that takes 4 GB of it.
_WEIGHTS = 1 << 22


def packed(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    g_idx: torch.Tensor,
    bits: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``qweight`` and ``qzeros`` of a weight that holds quantized values already.

    Args:
        weight: ``[out_features, in_features]``, floating, in main memory.
        scales: ``[out_features, groups]``, FP32. A scale of 0 counts as 1e-6, as in gptqmodel's packer.
        zeros: like ``scales``, whole numbers.
        g_idx: ``[in_features]``, each from 0 to ``groups - 1``.
        bits: 2, 4 or 8.
        device: where it is computed.

    Returns:
        int32 in main memory: ``[in_features * bits / 32, out_features]``, ``[groups, out_features * bits / 32]``.
    """
    import torch

    from gptq_hybrid.packing import pack_words

    rows, columns = weight.shape
    group = g_idx.to(device, torch.int64)
    words = torch.empty(columns * bits // 32, rows, dtype=torch.int32, device=device)
    step = max(1, _WEIGHTS // columns)
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        scale = scales[part].to(device, torch.float32)
        # The product is rounded before the sum, as in the packer: whether 0 or 1e-6, its scale takes part in it.
        offset = (zeros[part].to(device, torch.int32).to(torch.float32) * scale)[:, group]
        scale = torch.where(scale == 0, 1e-6, scale)[:, group]
        codes = ((weight[part].to(device).float() + offset) / scale).round_().clamp_(0, (1 << bits) - 1)
        words[:, part] = pack_words(codes.to(torch.int32).T, bits)
    return words.cpu(), pack_words(zeros.cpu().to(torch.int32), bits).T.contiguous()


@cache
def _stream(device: torch.device) -> Any:
    import torch

    # One of its own: packing has not to wait for the solver of the next module.
    return torch.cuda.Stream(device)


@contextmanager
def gpu_packing(left: Departures) -> Iterator[None]:
    """Have ``pack_block`` of gptqmodel's linears compute on the GPU that their layer ``left``.

    Before a layer left one it is gptqmodel's. Other linears than dense ones in main memory, other widths than 2, 4
    and 8 bit, a ``g_idx`` that is out of range, and what a full GPU has no room for go gptqmodel's own way too.

    Raises:
        IncompatibleError: ``PackableQuantLinear.pack_block`` is gone, or takes something else.
    """
    import torch

    try:
        from gptqmodel.nn_modules.qlinear import PackableQuantLinear
    except ImportError as error:
        raise moved(f"gptqmodel.nn_modules.qlinear.PackableQuantLinear is expected: {error}") from error
    original: Callable[..., None] | None = vars(PackableQuantLinear).get("pack_block")
    if original is None or tuple(inspect.signature(original).parameters) != _ARGUMENTS:
        raise moved(f"PackableQuantLinear.pack_block is expected to take {', '.join(_ARGUMENTS)}")

    lock = Lock()

    @wraps(original)
    def pack_block(
        self: Any, linear: Any, scales: Any, zeros: Any, g_idx: Any, *args: Any, **kwargs: Any
    ) -> None:
        device = left.device
        if device is None:
            original(self, linear, scales, zeros, g_idx, *args, **kwargs)
            return
        usual = (
            isinstance(linear, torch.nn.Linear)
            and not linear.weight.is_cuda
            and g_idx.numel() == linear.weight.shape[1]
            and self.bits in (2, 4, 8)
            and not self.planar
            and self.pack_dtype == torch.int32
            and not any(size % 32 for size in linear.weight.shape)
            and int(g_idx.min()) >= 0
            and int(g_idx.max()) < scales.shape[1]
        )
        if not usual:
            original(self, linear, scales, zeros, g_idx, *args, **kwargs)
            return
        try:
            # One at a time, for the sake of the memory: gptqmodel has up to twelve threads here.
            with lock, torch.inference_mode(), torch.cuda.stream(_stream(device)):
                qweight, qzeros = packed(linear.weight.detach(), scales, zeros, g_idx, int(self.bits), device)
        except RuntimeError as error:
            if "out of memory" not in str(error).lower():
                raise
            original(self, linear, scales, zeros, g_idx, *args, **kwargs)
            return
        # In gptqmodel's order, which becomes that of the file.
        self.register_buffer("g_idx", g_idx.cpu())
        self.register_buffer("scales", scales.T.contiguous().to(torch.float16))
        if linear.bias is not None:
            self.register_buffer("bias", linear.bias.detach().to("cpu", dtype=torch.float16))
        elif not hasattr(self, "bias"):
            self.bias = None
        self.register_buffer("qweight", qweight)
        self.register_buffer("qzeros", qzeros)

    PackableQuantLinear.pack_block = pack_block
    try:
        yield
    finally:
        PackableQuantLinear.pack_block = original
