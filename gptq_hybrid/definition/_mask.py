"""The attention mask of a replayed layer.

gptqmodel captures the arguments of layer 0, a Gated-DeltaNet layer with a 2-D
padding mask (or none), and replays them into every layer. Full attention needs a
causal mask instead: with the 2-D one it crashes on batches of unequal length, and
with none, eager attention looks at the future.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def causal_mask(hidden_states: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Additive causal mask that also hides padding.

    Args:
        hidden_states: ``[batch, length, hidden]``; gives dtype and device.
        keep: ``[batch, length]``, non-zero where a token is real, or None for no padding.

    Returns:
        ``[batch, 1, length, length]``: 0 where a query may look, the dtype's minimum elsewhere.
    """
    import torch

    batch, length = hidden_states.shape[:2]
    visible = torch.ones(length, length, dtype=torch.bool, device=hidden_states.device).tril()
    visible = visible.expand(batch, 1, length, length)
    if keep is not None:
        visible = visible & keep.to(hidden_states.device).bool()[:, None, None, :]
    mask = torch.zeros(visible.shape, dtype=hidden_states.dtype, device=hidden_states.device)
    return mask.masked_fill_(~visible, torch.finfo(hidden_states.dtype).min)
