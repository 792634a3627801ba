"""Ways to lose the MTP head, or to make it useless to vLLM."""

from __future__ import annotations

import torch

from .case import INDEX, MTP_FILE, Workshop, faulty, odd

GATE = "mtp.layers.0.mlp.gate_proj.weight"
FC = "mtp.fc.weight"
SHORT_NAMES = [
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "out_proj")),
]


def _unindex(shop: Workshop) -> None:
    def drop(weight_map: dict[str, str]) -> None:
        for name in [n for n, f in weight_map.items() if f == MTP_FILE]:
            del weight_map[name]

    shop.index(drop)
    shop.total_size()


def _absent(shop: Workshop) -> None:
    _unindex(shop)
    shop.delete(MTP_FILE)


def _bf16_head(shop: Workshop) -> None:
    """An FP8 checkpoint with a BF16 head grafted in, and a config that does not say so."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.endswith("_scale_inv")]:
            weight = name.removesuffix("_scale_inv")
            tensors[weight] = tensors[weight].to(torch.bfloat16)
            del tensors[name]

    shop.shard(MTP_FILE, change)


def _rounded(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Round a matrix ``[n, k]`` to four bits in groups of 128, in GPTQ's layout."""
    n, k = weight.shape
    groups = weight.float().view(n, k // 128, 128)
    scales = (groups.abs().amax(-1, keepdim=True) / 7).clamp_min(1e-4)
    codes = ((groups / scales).round().clamp(-8, 7) + 8).to(torch.int64).view(n, k // 8, 8)
    words = (codes << (4 * torch.arange(8))).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return {
        "qweight": words.T,
        "scales": scales.squeeze(-1).T.to(torch.float16),
        # The stored zero point is one less than the true one, which is 8.
        "qzeros": torch.full((k // 128, n // 8), 0x77777777, dtype=torch.int32),
        "g_idx": (torch.arange(k) // 128).to(torch.int32),
    }


def _packed_head(module: str) -> object:
    """Store one linear of the head as GPTQ, and leave the rest."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update(
            {f"{module}.{part}": t for part, t in _rounded(tensors.pop(f"{module}.weight")).items()}
        )

    return lambda shop: shop.shard(MTP_FILE, change)


def _permuted_head(shop: Workshop) -> None:
    module = "mtp.layers.0.mlp.down_proj"
    _packed_head(module)(shop)  # type: ignore[operator]
    shop.quantization(dynamic=None)
    shop.tensor(f"{module}.g_idx", lambda t: t.flip(0))


def _fill(value: float) -> object:
    return lambda shop: shop.tensor(FC, lambda t: torch.full_like(t, value))


MTP_CASES = (
    faulty("head-unindexed", "gptq", "mtp-unindexed", _unindex),
    faulty("head-absent", "gptq", "mtp-missing", _absent),
    odd("head-absent-not-wanted", "gptq", "", _absent, mtp=False),
    faulty("head-file-absent", "gptq", "index-missing-file mtp-missing", lambda s: s.delete(MTP_FILE)),
    faulty("head-no-fc", "gptq", "mtp-missing", lambda s: s.tensor(FC, lambda t: None)),
    faulty("head-no-gate", "gptq", "mtp-missing", lambda s: s.tensor(GATE, lambda t: None)),
    faulty("head-wide-fc", "gptq", "mtp-shape", lambda s: s.tensor(FC, lambda t: torch.cat([t, t]))),
    faulty("head-fp8", "gptq", "mtp-dtype", lambda s: s.tensor(GATE, lambda t: t.to(torch.float8_e4m3fn))),
    faulty("head-int8", "bf16", "mtp-dtype", lambda s: s.tensor(GATE, lambda t: t.to(torch.int8))),
    faulty("head-zero", "gptq", "mtp-values", _fill(0)),
    faulty("head-nan", "gptq", "mtp-values", _fill(float("nan"))),
    faulty("head-inf", "bf16", "mtp-values", _fill(float("inf"))),
    faulty(
        "head-of-a-part",
        "gptq",
        "mtp-elsewhere",
        lambda s: s.shard("mtp.safetensors", lambda t: t.update({f"model.{n}": t.pop(n) for n in list(t)})),
    ),
    faulty(
        "config-without-head",
        "gptq",
        "mtp-config",
        lambda s: s.config(lambda c: c["text_config"].update(mtp_num_hidden_layers=0)),
    ),
    faulty(
        "dynamic-null",
        "gptq",
        "mtp-dynamic-null",
        lambda s: s.config(lambda c: c["quantization_config"].update(dynamic=None)),
    ),
    odd(
        "dynamic-null-old-vllm",
        "gptq",
        "mtp-dynamic-null quantization-copies",
        lambda s: s.config(lambda c: c["quantization_config"].update(dynamic=None)),
        vllm="0.26.0",
    ),
    faulty(
        "head-short-module-list",
        "gptq",
        "mtp-quantization",
        lambda s: s.quantization(dynamic=None, modules_in_block_to_quantize=SHORT_NAMES),
    ),
    faulty(
        "head-packed-but-excluded", "gptq", "mtp-quantization", _packed_head("mtp.layers.0.mlp.down_proj")
    ),
    odd(
        "head-down-packed",
        "gptq",
        "",
        lambda s: (_packed_head("mtp.layers.0.mlp.down_proj")(s), s.quantization(dynamic=None)),
    ),  # type: ignore[operator]
    faulty(
        "head-half-fused",
        "gptq",
        "mtp-fused",
        lambda s: (_packed_head("mtp.layers.0.mlp.up_proj")(s), s.quantization(dynamic=None)),
    ),  # type: ignore[operator]
    faulty("head-gptq-in-packed", "packed", "mtp-quantization", _packed_head("mtp.layers.0.mlp.down_proj")),
    faulty("head-not-ignored", "packed", "mtp-quantization", lambda s: s.quantization(ignore=["lm_head"])),
    faulty(
        "head-ignored-by-short-name",
        "packed",
        "mtp-quantization",
        lambda s: s.quantization(ignore=["lm_head", "mtp", "re:.*in_proj_[ab]$", "re:.*visual.*"]),
    ),
    faulty(
        "head-in-no-block-list",
        "auto-round",
        "mtp-quantization",
        lambda s: s.quantization(block_name_to_quantize=None),
    ),
    faulty(
        "head-not-in-awq-list",
        "awq",
        "mtp-quantization",
        lambda s: s.quantization(modules_to_not_convert=["visual", "in_proj_a", "in_proj_b"]),
    ),
    faulty("head-bf16-in-fp8", "fp8", "mtp-quantization", _bf16_head),
    faulty("head-packed-in-another-order", "gptq", "g-idx-flag", _permuted_head),
    faulty(
        "head-index-lies",
        "bf16",
        "mtp-missing",
        lambda s: (
            s.shard(MTP_FILE, lambda t: t.pop(FC), reindex=False),
            s.json(INDEX, lambda i: i["metadata"].pop("total_size")),
        ),
    ),
)
