"""GPTQ's solver with less work and fewer waits for the GPU, to the same bytes.

Changes: ``GPTQ.quantize``, by a patch of its source: ``patches/gptqmodel-7.6.0/solver.patch``, whose text lists the
    changes, or that for another version. The patched code imports two functions of this module.
Why: upstream searches scales that it never uses, and waits for the GPU up to 80 times a group.
Versions: 7.6.0; 7.7.0, where it was run on a CPU only.
Checks: a patch applies, each of its hunks to exactly one place; nothing but ``torch.inference_mode`` wraps the
    method.
May go: when gptqmodel takes the patch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gptq_hybrid.upstream.patching import patched_method, shipped_patches
from gptq_hybrid.upstream.versions import moved

from ._pinned import pinned

if TYPE_CHECKING:
    import torch

# Channels times groups searched at once: 128 MiB in FP32, and a few times that while it lasts.
_AT_ONCE = 1 << 18


def group_quantizers(quantizer: Any, weight: torch.Tensor, group_size: int) -> list[Any]:
    """Copy gptqmodel's ``quantizer`` once a group, with the scales and zeros of that group's columns of ``weight``.

    A search treats each row of its argument by itself, so the rows of many groups go through one.

    Args:
        quantizer: a configured, per-channel ``Quantizer``; not changed.
        weight: ``[channels, columns]``, FP32. A last group may be narrower than ``group_size``.

    Returns:
        In the order of the columns; ``scale`` and ``zero`` are ``[channels, 1]``.
    """
    channels, columns = weight.shape
    whole = columns // group_size * group_size
    step = max(1, _AT_ONCE // channels) * group_size
    quantizers = []
    for first in range(0, whole, step):
        part = weight[:, first : min(first + step, whole)]
        groups = part.shape[1] // group_size
        searched = copy.deepcopy(quantizer)
        searched.find_params(part.reshape(channels * groups, group_size), weight=True)
        # Columns of a [channels, groups] matrix, each in memory of its own as upstream's are.
        scales = searched.scale.reshape(channels, groups).T.contiguous()
        zeros = searched.zero.reshape(channels, groups).T.contiguous()
        for scale, zero in zip(scales, zeros, strict=True):
            one = copy.deepcopy(quantizer)
            one.maxq, one.scale, one.zero = (
                searched.maxq,
                scale.reshape(channels, 1),
                zero.reshape(channels, 1),
            )
            quantizers.append(one)
    if whole < columns:
        one = copy.deepcopy(quantizer)
        one.find_params(weight[:, whole:], weight=True)
        quantizers.append(one)
    return quantizers


def numbers_on(device: torch.device, numbers: list[int]) -> torch.Tensor:
    """Return ``numbers`` as int32 on ``device``; the host does not wait for the copy."""
    import torch

    if device.type != "cuda":
        return torch.tensor(numbers, dtype=torch.int32, device=device)
    if not any(numbers):
        return torch.zeros(len(numbers), dtype=torch.int32, device=device)
    host = torch.tensor(numbers, dtype=torch.int32)
    return pinned(host.nbytes).view(torch.int32).copy_(host).to(device, non_blocking=True)


@contextmanager
def swift_solver() -> Iterator[None]:
    """Have ``GPTQ.quantize`` do the same with less. To be entered before ``record_modules``.

    Raises:
        IncompatibleError: no patch applies to its source, or something wraps it already.
    """
    from gptqmodel.quantization import gptq

    original: Callable[..., Any] | None = getattr(gptq.GPTQ, "quantize", None)
    # torch.inference_mode is the one wrapper that upstream puts around it.
    inner = getattr(original, "__wrapped__", None)
    if inner is None or hasattr(inner, "__wrapped__"):
        raise moved("GPTQ.quantize is expected to be in torch.inference_mode and in nothing else")
    gptq.GPTQ.quantize = patched_method(gptq, "GPTQ.quantize", shipped_patches("solver.patch"))
    try:
        yield
    finally:
        gptq.GPTQ.quantize = original
