"""vLLM's model with a cheap head for steps in which every request is greedy."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch

from vllm_qwen36_plugin.upstream.greedy_steps import only_the_largest_counts

from .head import attach, attached


def verifying(stock: type) -> type:
    """Subclass a model class of vLLM, under its own name: its logits come from an attached head where they may."""
    compute: Any = stock.compute_logits  # type: ignore[attr-defined]
    load: Any = stock.load_weights  # type: ignore[attr-defined]

    @wraps(compute)
    def compute_logits(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        head = attached(_lm_head(self))
        if head is None or not head.takes(len(hidden_states)) or not only_the_largest_counts():
            return compute(self, hidden_states, *args, **kwargs)
        return head.logits(hidden_states)

    @wraps(load)
    def load_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Of other weights: what was measured no longer holds.
        attach(_lm_head(self), None)
        return load(self, *args, **kwargs)

    members = {"compute_logits": compute_logits, "load_weights": load_weights, "__doc__": stock.__doc__}
    return type(stock.__name__, (stock,), members)


def _lm_head(model: Any) -> Any:
    return getattr(getattr(model, "language_model", model), "lm_head", None)
