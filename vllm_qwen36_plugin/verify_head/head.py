"""An output head whose largest logit of each row is the original's, read from the copy that drafts use."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from .planes import Planes, make_planes

# Tokens a row that are computed again, on average over a step; a thirtieth of the 27B's vocabulary, 84 MB.
_MOST = 8192
# Rows of a call; beyond, the head is multiplied for longer than it is read.
_MOST_ROWS = 64
_NAME = "qwen36_verify_head"


class Copy(Protocol):
    """Of an output head, all its tokens in four bits."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``[rows, n]`` for ``hidden`` ``[rows, k]``."""


class VerifyHead:
    """Logits whose largest is the original weight's, in value and in place; the others stay below it."""

    def __init__(self, weight: torch.Tensor, n: int, copy: Copy) -> None:
        """Measure ``copy`` against ``weight``.

        Args:
            weight: BF16 ``[n or more, k]``, contiguous.
            n: tokens of the model.
            copy: in four bits.

        Raises:
            ValueError: a weight that this does not work for.
        """
        self.weight, self._copy = weight[:n], copy
        self.most_rows = _MOST_ROWS
        self._planes: Planes = make_planes(self.weight, copy.logits)
        self._found = torch.zeros(1, dtype=torch.int32, device=weight.device)
        self._listed = torch.zeros(_MOST_ROWS * _MOST, dtype=torch.int32, device=weight.device)
        if weight.is_cuda:
            # Compile for every number of rows.
            for rows in (1, 17, 33):
                self.logits(torch.zeros(rows, weight.shape[1], dtype=weight.dtype, device=weight.device))

    @property
    def bytes(self) -> int:
        """Bytes of GPU memory beside the copy."""
        return int(self._planes.bytes) + 4 * _MOST_ROWS * _MOST

    def takes(self, rows: int) -> bool:
        """Whether so many rows are read faster by way of the copy."""
        return 0 < rows <= self.most_rows

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return BF16 ``[rows, n]`` for ``hidden`` ``[rows, k]``; nothing waits for the GPU."""
        logits = self._copy.logits(hidden)
        listed = self._listed[: len(hidden) * _MOST]
        if hidden.is_cuda:
            from .kernel import settle
        else:
            from .on_cpu import settle
        settle(logits, hidden, self.weight, self._planes, self._found, listed)
        return logits


def attach(lm_head: Any, head: VerifyHead | None) -> None:
    """Have the target's own head lead to ``head``, past PyTorch's list of its parts; None takes it away."""
    if lm_head is not None:
        object.__setattr__(lm_head, _NAME, head)


def attached(lm_head: Any) -> VerifyHead | None:
    """Return what :func:`attach` left."""
    head: VerifyHead | None = getattr(lm_head, "__dict__", {}).get(_NAME)
    return head
