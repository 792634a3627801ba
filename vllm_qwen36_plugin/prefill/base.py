"""Which packed layout a linear is held in, where vLLM's choice is Machete and another would do.

Machete's layout is its own; Marlin's serves Marlin, Humming and the dense routes. On an H200 with vLLM 0.33.0
Humming takes 0.69 of Machete's time for 1 to 8 tokens and up to 1.06 for 1,024 and more (bench/prefill), so it
depends on the load. Both are timed on the first layer of each shape, at start-up, for :class:`Load`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.upstream.linear_kernels import copy_of_parameters

from . import humming, measure
from .selftest import Original
from .shape import Shape

# Requests that are alone, and requests at a time, in the load.
_ALONE, _AT_ONCE = 1, 16
_PROMPT, _REPLY = 2048, 256
# Of drafts, accepted: what an MTP head has on average (bench/drafts).
_ACCEPTED = 0.8


@dataclass(frozen=True, slots=True)
class Load:
    """What a linear is weighed by: one request alone and sixteen at a time, of 2,048 tokens in and 256 out.

    Attributes:
        chunk: most tokens of a prompt in one call.
        drafts: tokens drafted a step.
        at_once: most requests at a time.
    """

    chunk: int
    drafts: int
    at_once: int

    @classmethod
    def current(cls, chunk: int) -> Load:
        """Read the load that vLLM's current config allows."""
        from vllm.config import get_current_vllm_config_or_none

        config = get_current_vllm_config_or_none()
        drafts = getattr(getattr(config, "speculative_config", None), "num_speculative_tokens", None) or 0
        at_once = getattr(getattr(config, "scheduler_config", None), "max_num_seqs", None)
        return cls(chunk, int(drafts), int(at_once or 16))

    @property
    def calls(self) -> dict[int, float]:
        """Calls of a linear by number of tokens."""
        at_once = min(self.at_once, _AT_ONCE)
        chunk = min(self.chunk, _PROMPT)
        steps = _REPLY / (1 + self.drafts * _ACCEPTED)
        calls: dict[int, float] = {chunk: (_ALONE + at_once) * _PROMPT / chunk}
        for requests in (_ALONE, at_once):
            tokens = requests * (1 + self.drafts)
            calls[tokens] = calls.get(tokens, 0.0) + steps
        return calls

    def microseconds(self, times: dict[int, float]) -> float:
        """Sum what all calls take, by microseconds a call."""
        return sum(count * times[tokens] for tokens, count in self.calls.items())


def marlin_is_faster(
    stock: Any, marlin: Any, shape: Shape, layer: torch.nn.Module, original: Original, load: Load
) -> bool:
    """Whether a linear is served faster from Marlin's layout than by the kernel that vLLM chose.

    Args:
        stock, marlin: the two kernels, which have processed no weight yet.
        shape: as Marlin would hold it.
        layer: with its parameters as they were loaded; it is not changed.
        original: the same weight.
    """
    device = original.words.device
    multiply = humming.kernel_for(shape, device)
    held = {}
    for name, kernel in (("stock", stock), ("marlin", marlin)):
        held[name] = copy_of_parameters(layer)
        kernel.process_weights_after_loading(held[name])
    words, scales = (getattr(held["marlin"], name).data for name in (marlin.w_q_name, marlin.w_s_name))
    if not humming.same_bytes(shape, original.words, original.scales, (words, scales)):
        return False
    times: dict[str, dict[int, float]] = {"stock": {}, "marlin": {}}
    for tokens in load.calls:
        x = torch.randn(tokens, shape.k, dtype=getattr(torch, shape.dtype), device=device)
        calls: dict[str, Callable[[], object]] = {
            name: lambda kernel=kernel, name=name, x=x: kernel.apply_weights(held[name], x)  # type: ignore[misc]
            for name, kernel in (("stock", stock), ("marlin", marlin))
        }
        calls["humming"] = lambda x=x: multiply(x, words, scales)  # type: ignore[misc]
        took = measure.in_turns(calls)
        times["stock"][tokens] = took["stock"]
        times["marlin"][tokens] = min(took["marlin"], took["humming"])
    ours, theirs = (load.microseconds(times[name]) for name in ("marlin", "stock"))
    logger.debug(
        "vllm-qwen36-plugin: %s: %.2f of Machete's time for the load: %s", shape.key, ours / theirs, times
    )
    return ours < theirs * (1 - measure.MARGIN)
