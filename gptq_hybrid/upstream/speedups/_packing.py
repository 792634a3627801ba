"""Pack quantized weights on the GPU, to the bytes of gptqmodel's CPU packer.

Changes: ``PackableQuantLinear.pack_block``, for dense linears in 2, 4 or 8 bits.
Why: gptqmodel packs a module on one core while the next modules are quantized. For five layers of the 27B that
    kept threads busy for 53 s of a run of 28 s (an H200, with the other speed-ups), and threads that wait for
    Python's lock slowed down the sweep from 2.7 to 4.3 s. The ``pack_impl="gpu"`` of 7.6.0 launches nine
    kernels for every 32 inputs.
Versions: 7.6.0; it fits 7.7.0, and was not run there on a GPU.
Checks: the signature of ``pack_block``.
May go: when gptqmodel's ``pack_impl="gpu"`` is as fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from threading import Lock
from typing import TYPE_CHECKING, Any

from gptq_hybrid.upstream.versions import moved

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
    """Return ``qweight`` and ``qzeros`` of a weight that holds quantized values already.

    Args:
        weight: ``[out_features, in_features]``, floating, in main memory.
        scales: ``[out_features, groups]``, FP32. A scale of 0 counts as 1e-6, as in gptqmodel's packer.
        zeros: like ``scales``, whole numbers.
        g_idx: ``[in_features]``, each from 0 to ``groups - 1``.
        bits: 2, 4 or 8.
        device: where the packing is computed.

    Returns:
        int32 in main memory: ``[in_features * bits / 32, out_features]``, ``[groups, out_features * bits / 32]``.
    """
    import torch

    from gptq_hybrid.packing import pack_words

    channels, columns = weight.shape
    group = g_idx.to(device, torch.int64)
    words = torch.empty(columns * bits // 32, channels, dtype=torch.int32, device=device)
    step = max(1, _WEIGHTS // columns)
    for first in range(0, channels, step):
        part = slice(first, min(first + step, channels))
        scale = scales[part].to(device, torch.float32)
        # The product is rounded before the sum, as in the packer, and with the scale before 0 becomes 1e-6.
        offset = (zeros[part].to(device, torch.int32).to(torch.float32) * scale)[:, group]
        scale = torch.where(scale == 0, 1e-6, scale)[:, group]
        codes = ((weight[part].to(device).float() + offset) / scale).round_().clamp_(0, (1 << bits) - 1)
        words[:, part] = pack_words(codes.to(torch.int32).T, bits)
    return words.cpu(), pack_words(zeros.cpu().to(torch.int32), bits).T.contiguous()


@cache
def _stream(device: torch.device) -> Any:
    import torch

    # A stream of its own, so that packing does not wait for the solver of the next module.
    return torch.cuda.Stream(device)


@contextmanager
def gpu_packing(left: Departures) -> Iterator[None]:
    """Have ``pack_block`` of gptqmodel's linears compute on the GPU that their layer ``left``.

    gptqmodel's own packer is used before a layer has left a GPU, and where the GPU is full. It is also used for
    linears that are not dense or not in main memory, for widths other than 2, 4 and 8 bits, and for a ``g_idx``
    out of range.

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
            # One at a time, to spare GPU memory: gptqmodel has up to twelve threads here.
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
