"""Packed heads, modules of other bits and absent vision towers, with configs that contradict them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gptq_hybrid.checkpoint import LinearSpec, layout_for
from gptq_hybrid.packing import dequantize, pack, quantize_rtn
from gptq_hybrid.recipes import dynamic_rules

from .case import MTP_FILE, Tensors, Workshop, faulty, odd

LAYER = "model.language_model.layers"
QKV, Z, OUT = (f"{LAYER}.0.linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "out_proj"))
DOWN, GATE, UP, FC = (
    *(f"mtp.layers.0.mlp.{name}_proj" for name in ("down", "gate", "up")),
    "mtp.fc",
)
PARTS = ("qweight", "scales", "qzeros", "g_idx")
LM_HEAD_RULE = r"+:^(?:language_model\.)?lm_head$"
Apply = Callable[[Workshop], object]


def _rebit(bits: int, *modules: str, file: str | None = None) -> Apply:
    """Pack modules again, in other bits."""

    def apply(shop: Workshop) -> None:
        for module in modules:

            def change(tensors: Tensors, module: str = module) -> None:
                old = {part: tensors[f"{module}.{part}"] for part in PARTS}
                before = old["qweight"].shape[0] * 32 // old["g_idx"].shape[0]
                codes, scales = quantize_rtn(dequantize(**old, bits=before), bits, 128)
                tensors.update({f"{module}.{part}": t for part, t in pack(codes, scales, bits).items()})

            shop.shard(file or shop.file_of(f"{module}.qweight"), change)

    return apply


def _dynamic(change: Callable[[dict[str, Any]], object]) -> Apply:
    """Change the rules of both configs."""

    def apply(shop: Workshop) -> None:
        def edit(config: dict[str, Any]) -> None:
            change(config.setdefault("dynamic", {}))

        shop.config(lambda config: edit(config["quantization_config"]))
        shop.json("quantize_config.json", edit)

    return apply


def _eight(pattern: str) -> Apply:
    return _dynamic(lambda rules: rules.update({pattern: {"bits": 8}}))


def _leave(pattern: str) -> Apply:
    return _dynamic(lambda rules: rules.update({pattern: {}}))


def _rules_for(choices: dict[str, int]) -> Apply:
    def apply(shop: Workshop) -> None:
        configs: list[dict[str, Any]] = []
        shop.config(configs.append)
        _dynamic(lambda rules: rules.update(dynamic_rules(layout_for(configs[0]), choices)))(shop)

    return apply


def _also(*steps: Apply) -> Apply:
    return lambda shop: [step(shop) for step in steps]


def _tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Apply:
    return lambda shop: shop.tensor(name, change)


def _dense_head(module: str) -> Apply:
    """Store one packed linear of the head in BF16 again."""

    def change(tensors: Tensors) -> None:
        parts = {part: tensors.pop(f"{module}.{part}") for part in PARTS}
        tensors[f"{module}.weight"] = dequantize(**parts, bits=4).to(torch.bfloat16)

    return lambda shop: shop.shard(MTP_FILE, change)


def _vision_tensor(shop: Workshop) -> None:
    """A vision tower of one tensor."""
    configs: list[dict[str, Any]] = []
    shop.config(configs.append)
    spec = layout_for(configs[0]).vision[0]
    some = torch.zeros(spec.shape, dtype=torch.bfloat16)
    shop.shard(MTP_FILE, lambda tensors: tensors.update({spec.name: some}))


def _pack_lm_head(bits: int) -> Apply:
    def change(tensors: Tensors) -> None:
        weight = tensors.pop("lm_head.weight")
        linear = LinearSpec("lm_head", *weight.shape)
        codes, scales = quantize_rtn(weight, bits, 128)
        packed = pack(codes, scales.to(torch.float16), bits)
        tensors.update({f"{linear.name}.{part}": t for part, t in packed.items()})

    return lambda shop: shop.shard(shop.file_of("lm_head.weight"), change)


VARIANT_CASES = (
    # Modules of other bits.
    odd("eight-bits", "gptq", "", _also(_rebit(8, QKV, Z, OUT), _rules_for({QKV: 8, Z: 8, OUT: 8}))),
    faulty("eight-bits-undeclared", "gptq", "quantized-shape", _rebit(8, OUT)),
    faulty(
        "eight-bits-by-gptqmodels-names-alone",
        "gptq",
        "dynamic-names",
        _also(
            _rebit(8, QKV, Z),
            _eight(r"+:.*\.0\.linear_attn\.in_proj_(qkv|z)$"),
        ),
    ),
    odd(
        "eight-bits-by-vllms-names-alone",
        "gptq",
        "dynamic-names",
        _also(
            _rebit(8, QKV, Z),
            _eight(r"+:.*\.0\.linear_attn\.in_proj_qkvz$"),
        ),
    ),
    faulty(
        "eight-bits-in-one-shard",
        "gptq",
        "quantized-fused dynamic-names",
        _also(_rebit(8, Z), _eight(r"+:.*\.0\.linear_attn\.in_proj_z$")),
    ),
    faulty(
        "left-out-by-vllms-name",
        "gptq",
        "dynamic-names",
        _leave(r"-:.*\.0\.linear_attn\.in_proj_qkvz$"),
    ),
    # The output head.
    odd("lm-head-in-base-bits", "gptq", "", _also(_pack_lm_head(4), lambda s: s.quantization(lm_head=True))),
    faulty(
        "lm-head-undeclared", "gptq-compact", "lm-head-quantized", lambda s: s.quantization(lm_head=False)
    ),
    faulty("lm-head-no-key", "gptq-compact", "lm-head-quantized", lambda s: s.quantization(lm_head=None)),
    faulty(
        "lm-head-bits-undeclared", "gptq-compact", "quantized-shape", _dynamic(lambda d: d.pop(LM_HEAD_RULE))
    ),
    faulty(
        "lm-head-rule-for-the-draft-alone",
        "gptq-compact",
        "dynamic-names",
        _dynamic(lambda d: (d.pop(LM_HEAD_RULE), d.update({r"+:^lm_head$": {"bits": 8}}))),
    ),
    faulty(
        "lm-head-left-out",
        "gptq-compact",
        "lm-head-quantized",
        _dynamic(lambda d: (d.pop(LM_HEAD_RULE), d.update({"-:.*lm_head": {}}))),
    ),
    faulty("lm-head-old-vllm", "gptq-compact", "lm-head-quantized", lambda s: None, vllm="0.22.1"),
    odd("lm-head-old-vllm-no-mtp", "gptq-compact", "", lambda s: None, vllm="0.22.1", mtp=False),
    faulty("lm-head-no-scales", "gptq-compact", "weights-missing", _tensor("lm_head.scales", lambda t: None)),
    faulty("lm-head-short", "gptq-compact", "quantized-shape", _tensor("lm_head.qweight", lambda t: t[:-8])),
    faulty(
        "lm-head-scales-nan",
        "gptq-compact",
        "scales-values",
        _tensor("lm_head.scales", lambda t: t.index_fill(0, torch.tensor([0]), float("nan"))),
    ),
    faulty("lm-head-permuted", "gptq-compact", "g-idx-flag", _tensor("lm_head.g_idx", lambda t: t.flip(0))),
    odd("lm-head-declared-but-dense", "gptq", "", lambda s: s.quantization(lm_head=True)),
    # The MTP head.
    odd("packed-head-by-an-older-vllm", "gptq-compact", "", lambda s: None, vllm="0.26.0"),
    faulty(
        "packed-head-excluded",
        "gptq-compact",
        "mtp-quantization",
        _leave(r"-:^mtp\."),
    ),
    faulty(
        "packed-head-but-fc-excluded",
        "gptq-compact",
        "mtp-quantization",
        _also(_dense_head(FC), _leave(r"-:^mtp\.fc")),
    ),
    odd(
        "packed-head-but-fc-excluded-old-vllm",
        "gptq-compact",
        "",
        _also(_dense_head(FC), _leave(r"-:^mtp\.fc")),
        vllm="0.26.0",
    ),
    odd("packed-head-but-fc", "gptq-compact", "", _dense_head(FC)),
    faulty("packed-head-half-fused", "gptq-compact", "mtp-fused", _dense_head(GATE)),
    faulty(
        "packed-head-shard-in-eight-bits",
        "gptq-compact",
        "mtp-fused mtp-packed dynamic-names",
        _also(_rebit(8, UP, file=MTP_FILE), _eight(r"+:^mtp\..*\.up_proj")),
    ),
    odd(
        "packed-head-in-eight-bits",
        "gptq-compact",
        "",
        _also(
            _rebit(8, GATE, UP, DOWN, file=MTP_FILE),
            _eight(r"+:^mtp\..*\.mlp\."),
        ),
    ),
    faulty("packed-head-bits-undeclared", "gptq-compact", "mtp-packed", _rebit(8, DOWN, file=MTP_FILE)),
    faulty("packed-head-no-scales", "gptq-compact", "mtp-missing", _tensor(f"{DOWN}.scales", lambda t: None)),
    faulty("packed-head-no-qweight", "gptq-compact", "mtp-missing", _tensor(f"{FC}.qweight", lambda t: None)),
    odd("packed-head-no-qzeros", "gptq-compact", "mtp-packed", _tensor(f"{FC}.qzeros", lambda t: None)),
    odd("packed-head-no-g-idx", "gptq-compact", "mtp-packed", _tensor(f"{FC}.g_idx", lambda t: None)),
    faulty("packed-head-short", "gptq-compact", "mtp-packed", _tensor(f"{FC}.qweight", lambda t: t[:-8])),
    faulty(
        "packed-head-scales-nan",
        "gptq-compact",
        "mtp-values",
        _tensor(f"{FC}.scales", lambda t: t * torch.nan),
    ),
    faulty(
        "packed-head-scales-zero", "gptq-compact", "mtp-values", _tensor(f"{FC}.scales", torch.zeros_like)
    ),
    faulty("packed-head-zero", "gptq-compact", "mtp-values", _tensor(f"{DOWN}.qweight", torch.zeros_like)),
    faulty(
        "packed-head-of-zero-weights",
        "gptq-compact",
        "mtp-values",
        _tensor(f"{DOWN}.qweight", lambda t: torch.full_like(t, -0x77777778)),
    ),
    # Text alone.
    odd(
        "text-only-unsaid",
        "gptq-compact",
        "vision-missing",
        lambda s: s.config(lambda c: c.pop("language_model_only")),
    ),
    faulty("text-only-with-a-piece-of-a-tower", "gptq-compact", "vision-missing", _vision_tensor),
)
