"""``g_idx`` and the flags about it."""

from __future__ import annotations

import torch

from .case import Workshop, faulty, odd

LAYER = "model.language_model.layers"
O_PROJ, K_PROJ = f"{LAYER}.3.self_attn.o_proj.g_idx", f"{LAYER}.3.self_attn.k_proj.g_idx"


def _shuffle(tensor: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return tensor[torch.randperm(len(tensor), generator=generator)]


def _past_the_end(tensor: torch.Tensor) -> torch.Tensor:
    tensor[-1] = 99
    return tensor


def _uneven(tensor: torch.Tensor) -> torch.Tensor:
    """One feature too many in the last group, one too few in the first."""
    tensor[(tensor == 0).nonzero()[0]] = tensor.max()
    return tensor


def _ordered(**changes: object) -> object:
    return lambda shop: shop.quantization(**changes)


def _actorder(shop: Workshop) -> None:
    def change(config: dict) -> None:  # type: ignore[type-arg]
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["actorder"] = "group"

    shop.config(change)


def _stray_g_idx(shop: Workshop) -> None:
    name = f"{LAYER}.3.self_attn.o_proj"
    shop.shard(
        shop.file_of(f"{name}.weight_packed"),
        lambda t: t.update({f"{name}.weight_g_idx": torch.zeros(1024, dtype=torch.int32)}),
    )


ACT_ORDER_CASES = (
    faulty("g-idx-denied", "gptq", "g-idx-flag", lambda s: s.tensor(O_PROJ, _shuffle)),
    faulty("g-idx-denied-by-hand", "gptq-act-order", "g-idx-flag", _ordered(desc_act=False)),
    faulty("g-idx-fused", "gptq", "g-idx-fused g-idx-flag", lambda s: s.tensor(K_PROJ, _shuffle)),
    faulty(
        "g-idx-fused-old-vllm",
        "gptq-act-order",
        "g-idx-fused",
        lambda s: s.tensor(K_PROJ, _shuffle),
        vllm="0.29.0",
    ),
    faulty("g-idx-range", "gptq", "g-idx-range", lambda s: s.tensor(O_PROJ, _past_the_end)),
    faulty(
        "g-idx-uneven", "gptq-act-order", "g-idx-range", lambda s: s.tensor(O_PROJ, _uneven), vllm="0.29.0"
    ),
    faulty("g-idx-denied-with-plugin", "gptq-act-order", "g-idx-flag", _ordered(desc_act=False), plugin=True),
    # The rule of `dynamic` is about another module.
    faulty(
        "g-idx-denied-but-for-one",
        "gptq-act-order",
        "g-idx-flag",
        _ordered(desc_act=False, dynamic={r"-:^mtp\.": {}, r"+:.*o_proj": {"desc_act": True}}),
    ),
    faulty("act-order", "gptq-act-order", "act-order-version", lambda s: None),
    odd("act-order-with-plugin", "gptq-act-order", "act-order-version", lambda s: None, plugin=True),
    odd(
        "act-order-by-rule-with-plugin",
        "gptq-act-order",
        "act-order-version",
        _ordered(desc_act=False, dynamic={r"-:^mtp\.": {}, r"+:.*o_proj": {"desc_act": True}}),
        plugin=True,
    ),
    faulty(
        "act-order-in-vllms-words",
        "gptq-act-order",
        "act-order-version",
        _ordered(quant_method="gptq_marlin"),
        plugin=True,
    ),
    faulty(
        "g-idx-fused-with-plugin",
        "gptq-act-order",
        "g-idx-fused",
        lambda s: s.tensor(K_PROJ, _shuffle),
        plugin=True,
    ),
    odd("act-order-old-vllm", "gptq-act-order", "act-order-version", lambda s: None, vllm="0.29.0"),
    faulty("act-order-flag-only", "gptq", "act-order-flag-only", _ordered(desc_act=True)),
    odd(
        "act-order-flag-only-with-plugin", "gptq", "act-order-flag-only", _ordered(desc_act=True), plugin=True
    ),
    odd("act-order-flag-only-old-vllm", "gptq", "act-order-flag-only", _ordered(desc_act=True), vllm="0.28"),
    faulty(
        "act-order-by-rule",
        "gptq",
        "act-order-flag-only",
        _ordered(dynamic={r"-:^mtp\.": {}, r"+:.*o_proj": {"desc_act": True}}),
    ),
    faulty("act-order-packed-with-plugin", "packed", "act-order-packed", _actorder, plugin=True),
    faulty("act-order-packed", "packed", "act-order-packed", _actorder, vllm="0.30.0"),
    odd("act-order-packed-old-vllm", "packed", "act-order-packed", _actorder, vllm="0.29.0"),
    faulty("packed-stray-g-idx", "packed", "act-order-packed", _stray_g_idx),
)
