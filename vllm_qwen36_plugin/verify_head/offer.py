"""Make the head for verification of the copy that drafts have, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.ranks import first_rank
from vllm_qwen36_plugin.report import note
from vllm_qwen36_plugin.upstream.greedy_steps import publish_greedy_steps
from vllm_qwen36_plugin.upstream.tensor_parallel import rank

from .head import VerifyHead, attach


def offer(
    lm_head: Any,
    n: int,
    copy: Any,
    vllm_config: Any,
    wins_up_to: Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], int],
) -> None:
    """Attach a head for verification to the target's; else warn once, and every step has the whole head.

    Args:
        lm_head: vLLM's, of the target.
        n: tokens of the model.
        copy: drafts' own head, or None.
        vllm_config: of the engine.
        wins_up_to: given this head's logits and the weight, up to how many rows it is timed to be faster.
    """
    attach(lm_head, None)
    try:
        reason = _hindrance(lm_head, copy, vllm_config)
        if reason:
            raise ValueError(reason)
        publish_greedy_steps()
        head = VerifyHead(lm_head.weight.data, n, copy)
        head.most_rows = min(wins_up_to(head.logits, head.weight), head.most_rows)
        if not head.most_rows:
            raise ValueError("by way of drafts' copy it takes longer on this GPU")
    except Exception as error:  # noqa: BLE001 - the whole head verifies as well
        if first_rank():
            why = error or repr(error)
            logger.warning("vllm-qwen36-plugin: the whole output head verifies because %s", why)
            note("verify", "stock", str(why))
        return
    attach(lm_head, head)
    beside = f"{head.bytes >> 20} MiB beside it"
    line = f"greedy steps of up to {head.most_rows} rows verify with drafts' copy of the output head, and {beside}"
    logger.info("vllm-qwen36-plugin: %s", line)
    note("verify", "copy", line)


def _hindrance(lm_head: Any, copy: Any, vllm_config: Any) -> str:
    """Return why this cannot be done, or nothing."""
    if rank().size > 1:
        return "this is for one GPU"
    if copy is None or copy.ids is not None or copy.precision != "w4":
        return "drafts have no copy of it in 4 bits over all tokens (qwen36.draft, qwen36.draft_vocab)"
    weight = getattr(lm_head, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dtype != torch.bfloat16 or not weight.is_contiguous():
        return "it is not in BF16"
    if getattr(vllm_config.model_config, "head_dtype", weight.dtype) != weight.dtype:
        return "its logits are asked for in another type"
    if getattr(vllm_config, "lora_config", None) is not None:
        return "LoRA may change it"
    drafts = vllm_config.speculative_config
    if getattr(drafts, "rejection_sample_method", "") == "fly":
        return 'rejection_sample_method "fly" looks at all logits'
    if getattr(drafts, "enable_adaptive_verification", False):
        return "adaptive verification looks at all logits"
    return ""
