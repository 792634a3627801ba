"""GPTQ's solver without what it does for nothing and without its needless waits, to the same bytes.

`GPTQ.quantize` of gptqmodel 7.6.0, for 4 bit in groups of 128:

- searches scales of the whole matrix as one group, and never uses them;
- with ``static_groups`` searches group after group: with ``mse`` 80 candidate scales each, and for each of them
  waits for the GPU more than once (``torch.any``, boolean indexing, ``if maxq < 0``). A layer of the 27B has 344
  groups. A search treats each row of its argument for itself, so the rows of many groups go through one;
- with ``static_groups`` and ``desc_act`` reads the order of the columns from the GPU one number at a time, twice;
- copies the groups of each 128 columns to the GPU from memory that is not pinned, for which the host waits.

Written as changes to upstream's source, for they are meant to go there; each must be found exactly once.
"""

from __future__ import annotations

import copy
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from gptq_hybrid.upstream.gptqmodel import moved

from ._pinned import pinned

if TYPE_CHECKING:
    import torch

_BLOCK_ARGUMENTS = (
    "work", "hinv", "scale", "zero", "column_group", "quantized", "errors", "losses", "maxq",
)  # fmt: skip
# Rows of groups searched at once: 128 MiB in FP32, and a few times that while it lasts.
_ROWS = 1 << 18

_CHANGES = (
    (
        """
        self.quantizer.find_params(W, weight=True)

        # H = self.H.to(device=self.H.device)
""",
        """
        if self.qcfg.group_size > 0 and type(self.quantizer) is Quantizer:
            # Every group has its own; only this is read of the whole.
            self.quantizer.maxq = self.quantizer.maxq.to(W.device)
        else:
            self.quantizer.find_params(W, weight=True)
""",
    ),
    (
        """
            groups = []
            for i in range(0, self.columns, self.qcfg.group_size):
                quantizer = copy.deepcopy(self.quantizer)
                quantizer.find_params(W[:, i: (i + self.qcfg.group_size)], weight=True)

                scale.append(quantizer.scale)
                zero.append(quantizer.zero)
                groups.append(quantizer)
""",
        """
            from gptq_hybrid.upstream.speedups._solver import group_quantizers
            groups = group_quantizers(self.quantizer, W, self.qcfg.group_size)
            scale.extend(quantizer.scale for quantizer in groups)
            zero.extend(quantizer.zero for quantizer in groups)
""",
    ),
    (
        """
            invperm = torch.argsort(perm)

        elif self.qcfg.act_group_aware and use_hessian:
            diag_h = torch.diag(self.H)
""",
        """
            invperm = torch.argsort(perm)
            order = perm.tolist()

        elif self.qcfg.act_group_aware and use_hessian:
            diag_h = torch.diag(self.H)
""",
    ),
    (
        "idx = perm[column] if self.qcfg.desc_act else column\n",
        "idx = order[column] if self.qcfg.desc_act else column\n",
    ),
    (
        """
                                if self.qcfg.desc_act:
                                    idx = perm[idx]

                                self.quantizer = groups[idx // self.qcfg.group_size]

                        q = self.quantizer.quantize""",
        """
                                if self.qcfg.desc_act:
                                    idx = order[idx]

                                self.quantizer = groups[idx // self.qcfg.group_size]

                        q = self.quantizer.quantize""",
    ),
    (
        "column_group = torch.tensor(column_groups, device=W.device, dtype=torch.int32)\n",
        "from gptq_hybrid.upstream.speedups._solver import numbers_on\n"
        "                    column_group = numbers_on(W.device, column_groups)\n",
    ),
    (
        "g_idx = [perm[i] // group_size for i in range(self.columns)]\n",
        "g_idx = [order[i] // group_size for i in range(self.columns)]\n",
    ),
)


def group_quantizers(quantizer: Any, weight: torch.Tensor, group_size: int) -> list[Any]:
    """Copies of gptqmodel's ``quantizer``, one a group, with the scales and zeros of their columns of ``weight``.

    Args:
        quantizer: a configured, per-channel ``Quantizer``; not changed.
        weight: ``[rows, columns]``, FP32. A last group may be narrower than ``group_size``.

    Returns:
        In the order of the columns; ``scale`` and ``zero`` are ``[rows, 1]``.
    """
    rows, columns = weight.shape
    whole = columns // group_size * group_size
    at_once = max(1, _ROWS // rows) * group_size
    found = []
    for first in range(0, whole, at_once):
        part = weight[:, first : min(first + at_once, whole)]
        groups = part.shape[1] // group_size
        searched = copy.deepcopy(quantizer)
        searched.find_params(part.reshape(rows * groups, group_size), weight=True)
        # Columns of a [rows, groups] matrix, each in memory of its own as upstream's are.
        scales = searched.scale.reshape(rows, groups).T.contiguous()
        zeros = searched.zero.reshape(rows, groups).T.contiguous()
        for scale, zero in zip(scales, zeros, strict=True):
            one = copy.deepcopy(quantizer)
            one.maxq, one.scale, one.zero = searched.maxq, scale.reshape(rows, 1), zero.reshape(rows, 1)
            found.append(one)
    if whole < columns:
        one = copy.deepcopy(quantizer)
        one.find_params(weight[:, whole:], weight=True)
        found.append(one)
    return found


def numbers_on(device: torch.device, numbers: list[int]) -> torch.Tensor:
    """``numbers`` as int32 on ``device``; the host does not wait for the copy."""
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
        IncompatibleError: its source is not the one this was written for, or something wraps it already.
    """
    from gptqmodel.quantization import gptq

    original: Callable[..., Any] | None = getattr(gptq.GPTQ, "quantize", None)
    # torch.inference_mode is the one wrapper that upstream puts around it.
    inner = getattr(original, "__wrapped__", None)
    if inner is None or hasattr(inner, "__wrapped__"):
        raise moved("GPTQ.quantize is expected to be in torch.inference_mode and in nothing else")
    gptq.GPTQ.quantize = _changed(inner, vars(gptq))
    try:
        yield
    finally:
        gptq.GPTQ.quantize = original


@contextmanager
def block_kernel() -> Iterator[None]:
    """Have the sweep take its 128 columns at a time in Triton where gptqmodel has no kernel for them.

    gptqmodel 7.6.0 has one in CUDA, to the same bytes, that it builds on first use; a host without a compiler
    takes column after column, a dozen launches and a wait each. That kernel is left in place where it is there.

    Raises:
        IncompatibleError: gptqmodel does not ask for its kernel as 7.6.0 does.
    """
    try:
        from gptqmodel.quantization import gptq, gptq_cuda
    except ImportError as error:
        raise moved(f"gptqmodel.quantization.gptq_cuda is expected: {error}") from error

    available: Callable[[], bool] | None = getattr(gptq_cuda, "block_update_available", None)
    theirs: Callable[..., None] | None = getattr(gptq_cuda, "gptq_block_update", None)
    names = inspect.unwrap(gptq.GPTQ.quantize).__code__.co_names
    if available is None or theirs is None or not {"block_update_available", "gptq_block_update"} <= {*names}:
        raise moved("GPTQ.quantize is expected to import block_update_available and gptq_block_update")
    if tuple(inspect.signature(theirs).parameters) != _BLOCK_ARGUMENTS:
        raise moved(f"gptq_block_update is expected to take {', '.join(_BLOCK_ARGUMENTS)}")

    # A build that fails is not tried again; quantize fetches both functions before it calls either.
    built = cache(available)

    def gptq_block_update(*tensors: Any) -> None:
        if built():
            theirs(*tensors)
            return
        from ._block_kernel import block_update

        block_update(*tensors)

    gptq_cuda.block_update_available = lambda: True
    gptq_cuda.gptq_block_update = gptq_block_update
    try:
        yield
    finally:
        gptq_cuda.block_update_available, gptq_cuda.gptq_block_update = available, theirs


def _changed(function: Any, names: dict[str, Any]) -> Any:
    try:
        source = inspect.getsource(function)
    except OSError as error:
        raise moved(f"the source of GPTQ.quantize cannot be read: {error}") from error
    for before, after in _CHANGES:
        if source.count(before) != 1:
            raise moved(f"GPTQ.quantize is expected to hold once:\n{textwrap.dedent(before).strip()}")
        source = source.replace(before, after)
    made: dict[str, Any] = {}
    exec(compile(textwrap.dedent(source), f"<{function.__qualname__}, changed>", "exec"), names, made)
    return made[function.__name__]
