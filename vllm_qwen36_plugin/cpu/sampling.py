"""Sampling with drafts on CPUs: each request's temperature, top-k and top-p, for each of its draft tokens.

Without Triton vLLM replaces ``expand_kernel`` of its rejection sampler by a C++ function that takes int64. The
adapter around it converts the output as it does the inputs, and what is written into the converted copy is lost.
Temperatures, which are floats, stay whatever memory held. Drafts are then verified against logits over noise, and
the text is noise. Greedy requests never get there.

Changes: ``_expand_kernel_impl`` of ``vllm.utils.cpu_triton_utils``, and the object made of it at import.
Why: that adapter.
Versions: read in 0.26.0 and 0.32.0, run on 0.32.0; 0.19.1 has no such fallbacks.
Checks: the adapter is there, and the object holds a function to replace.
May go: when vLLM's adapter writes back.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_qwen36_plugin.errors import CompatError

_ADAPTER = "_expand_kernel_impl"


def expand_to_tokens(
    output: torch.Tensor,
    input_val: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,  # noqa: N803 - the Triton kernel's name, by which vLLM passes it
) -> None:
    """Write each request's value once for each of its tokens, with one value replaced by another.

    Args:
        output: ``[num_tokens]``, of the dtype of ``input_val``; written in place.
        input_val: ``[batch_size]``.
        cu_num_tokens: ``[batch_size]``, tokens of all requests up to and with each.
        MAX_NUM_TOKENS: a bound of the Triton kernel's loop; not needed here.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = torch.where(input_val == replace_from, torch.full_like(input_val, replace_to), input_val)
    output.copy_(values.repeat_interleave(counts.long(), output_size=output.numel()))


def mend_sampling_with_drafts() -> None:
    """Put :func:`expand_to_tokens` in place of vLLM's adapter, before a worker registers it. Idempotent.

    Does nothing if vLLM has no such fallbacks (0.19.1).

    Raises:
        CompatError: the fallbacks are there and this one is not.
    """
    try:
        from vllm.utils import cpu_triton_utils as fallbacks
    except ImportError:
        return
    if not hasattr(fallbacks, _ADAPTER):
        raise CompatError(f"vllm.utils.cpu_triton_utils has no {_ADAPTER}")
    setattr(fallbacks, _ADAPTER, expand_to_tokens)
    # Up to 0.26 at the least, what the sampler launches is an object made of the adapter at import.
    launched: Any = getattr(fallbacks, "expand_kernel", None)
    if launched is not None:
        if not hasattr(launched, "func"):
            raise CompatError("vllm.utils.cpu_triton_utils.expand_kernel holds no function to replace")
        launched.func = expand_to_tokens
