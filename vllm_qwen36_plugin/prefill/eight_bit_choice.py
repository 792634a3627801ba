"""Which kernel the route ``a8`` multiplies by: of Humming's, the first that is right for a weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_qwen36_plugin.errors import CompatError
from vllm_qwen36_plugin.log import logger

from . import dispatch
from .humming_8bit import SERVED, EightBitKernel
from .humming_8bit import problem_with as unsuited
from .selftest import Original, problem_with


def choose(linear: dispatch.Linear, original: Original, tensors: Sequence[torch.Tensor]) -> str | None:
    """Set what a linear multiplies with by ``a8``.

    Args:
        linear: the entry of its shape; :attr:`~.dispatch.Linear.eight_bit` is set.
        original: one layer's weight as it was loaded.
        tensors: those of the layer.

    Returns:
        Why there is none, or None.
    """
    shape, reasons = linear.shape, []
    problem = unsuited(shape)
    if problem is not None:
        return problem
    words, scales = tensors[linear.words], tensors[linear.scales]
    for name in SERVED:
        try:
            linear.eight_bit = EightBitKernel(shape, name, words.device)
            if not linear.eight_bit.same_words(original.words, original.scales, words, scales):
                raise CompatError("Humming's order of words is another than expected")
            problem = problem_with("a8", linear, original, tensors, None)
        except TimeoutError:
            problem = "it is still being compiled; the next start finds it"
        except Exception as error:  # noqa: BLE001 - 16 bits serve in any case
            problem = str(error) or repr(error)
        if problem is None:
            return None
        linear.eight_bit = None
        reasons.append(f"{name}: {problem}")
        logger.debug("vllm-qwen36-plugin: a8 of %s by %s: %s", shape.key, name, problem)
    return "; ".join(reasons)


def watch(linear: dispatch.Linear, tensors: Sequence[torch.Tensor]) -> None:
    """Have the guard watch a layer, if it may take int8; e4m3 needs no guard, and a bias keeps 16 bits anyway."""
    if not linear.takes("a8") or linear.eight_bit is None or linear.eight_bit.kind.dtype != "int8":
        return
    layer = linear.layer()
    if getattr(layer, "bias", None) is None:
        dispatch.guard().watch(tensors[linear.words], getattr(layer, "prefix", ""))
