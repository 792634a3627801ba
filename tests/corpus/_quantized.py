"""Bodies whose tensors and config contradict each other."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .case import CorpusCase, Tensors, Workshop, faulty, odd

LAYER = "model.language_model.layers"
O_PROJ, Q_PROJ, DOWN = (
    f"{LAYER}.3.self_attn.o_proj",
    f"{LAYER}.3.self_attn.q_proj",
    f"{LAYER}.0.mlp.down_proj",
)
GATE, Z, QKV = (
    f"{LAYER}.0.mlp.gate_proj",
    f"{LAYER}.0.linear_attn.in_proj_z",
    f"{LAYER}.0.linear_attn.in_proj_qkv",
)
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def _dense(module: str) -> object:
    """Store a quantized module in BF16, with the values it stands for."""

    def apply(shop: Workshop) -> None:
        def change(tensors: Tensors) -> None:
            words, scales = tensors[f"{module}.qweight"], tensors[f"{module}.scales"]
            codes = (words.unsqueeze(1) >> (4 * torch.arange(8)).view(1, 8, 1)) & 15
            rows = (codes.reshape(-1, words.shape[1]) - 8) * scales.float().repeat_interleave(128, dim=0)
            for part in PARTS:
                tensors.pop(f"{module}.{part}", None)
            tensors[f"{module}.weight"] = rows.T.to(torch.bfloat16)

        shop.shard(shop.file_of(f"{module}.qweight"), change)

    return apply


def _regroup(module: str) -> object:
    """Groups of 64 where the config says 128."""

    def apply(shop: Workshop) -> None:
        def change(tensors: Tensors) -> None:
            for part in ("scales", "qzeros"):
                tensors[f"{module}.{part}"] = tensors[f"{module}.{part}"].repeat_interleave(2, dim=0)
            tensors[f"{module}.g_idx"] = (
                torch.arange(len(tensors[f"{module}.g_idx"]), dtype=torch.int32) // 64
            )

        shop.shard(shop.file_of(f"{module}.qweight"), change)

    return apply


def _drop(name: str) -> object:
    return lambda shop: shop.tensor(name, lambda t: None)


def _pack(module: str) -> Callable[[Workshop], None]:
    """Store a plain module as GPTQ does, in order."""

    def change(tensors: Tensors) -> None:
        n, k = tensors.pop(f"{module}.weight").shape
        tensors[f"{module}.qweight"] = torch.arange(k // 8 * n, dtype=torch.int32).view(k // 8, n)
        tensors[f"{module}.qzeros"] = torch.ones(k // 128, n // 8, dtype=torch.int32)
        tensors[f"{module}.scales"] = torch.ones(k // 128, n, dtype=torch.float16)
        tensors[f"{module}.g_idx"] = (torch.arange(k) // 128).to(torch.int32)

    return lambda shop: shop.shard(shop.file_of(f"{module}.weight"), change)


def _config_copy(shop: Workshop) -> None:
    shop.json("quantize_config.json", lambda q: q.update(group_size=64))


def _undeclared(shop: Workshop) -> None:
    shop.config(lambda c: c.pop("quantization_config"))


def _set(module: str, part: str, index: int, value: float) -> object:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[index] = value
        return tensor

    return lambda shop: shop.tensor(f"{module}.{part}", change)


def _fill(name: str, value: float) -> object:
    return lambda shop: shop.tensor(name, lambda t: torch.full_like(t, value))


def _gguf(shop: Workshop) -> None:
    """A folder of llama.cpp's, with no config.json."""
    for path in list(shop.folder.iterdir()):
        path.unlink()
    (shop.folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(100))


def _foreign(method: str, old: str, new: str) -> object:
    """The names that another engine's converter gives its tensors."""

    def apply(shop: Workshop) -> None:
        name = f"{DOWN}.qweight"
        shop.shard(shop.file_of(name), lambda t: t.update({f"{DOWN}.{new}": t.pop(f"{DOWN}.{old}")}))
        shop.quantization(quant_method=method)

    return apply


DYNAMIC = {r"-:^mtp\.": {}}
QUANTIZED_CASES = (
    faulty("no-quantization-config", "gptq", "quantization-undeclared", _undeclared),
    faulty("bits-as-float", "gptq", "quantization-values", lambda s: s.quantization(bits=4.0)),
    faulty(
        "rule-that-is-no-pattern",
        "gptq",
        "quantization-values",
        lambda s: s.quantization(dynamic={r"-:^mtp\.": {}, "+:*o_proj": {"bits": 4}}),
    ),
    faulty(
        "unknown-method",
        "bf16",
        "quantization-unknown",
        lambda s: s.config(lambda c: c.update(quantization_config={"quant_method": "torchao"})),
    ),
    faulty("asymmetric", "gptq", "quantization-settings", lambda s: s.quantization(sym=False)),
    faulty("three-bits", "gptq", "quantization-settings quantized-shape", lambda s: s.quantization(bits=3)),
    faulty(
        "odd-group", "gptq", "quantization-settings quantized-shape", lambda s: s.quantization(group_size=96)
    ),
    faulty("other-group", "gptq", "quantized-shape", lambda s: s.quantization(group_size=64)),
    faulty("no-sym-key", "gptq", "quantization-settings", lambda s: s.quantization(sym=None)),
    faulty("dynamic-list", "gptq", "quantization-settings", lambda s: s.quantization(dynamic=["-:mtp"])),
    odd("config-copies-differ", "gptq", "quantization-copies", _config_copy),
    faulty("scales-missing", "gptq", "quantized-parts weights-missing", _drop(f"{O_PROJ}.scales")),
    odd("qzeros-missing", "gptq", "quantized-parts", _drop(f"{O_PROJ}.qzeros")),
    odd("g-idx-missing", "gptq", "quantized-parts", _drop(f"{O_PROJ}.g_idx")),
    faulty(
        "module-missing", "gptq", "weights-missing", lambda s: [_drop(f"{DOWN}.{part}")(s) for part in PARTS]
    ),  # type: ignore[operator]
    faulty("norm-missing", "gptq", "weights-missing", _drop("model.language_model.norm.weight")),
    faulty(
        "scales-short", "gptq", "quantized-shape", lambda s: s.tensor(f"{O_PROJ}.scales", lambda t: t[:-1])
    ),
    odd("qweight-int64", "gptq", "", lambda s: s.tensor(f"{O_PROJ}.qweight", lambda t: t.long())),
    faulty(
        "excluded-but-packed",
        "gptq",
        "quantized-mismatch",
        lambda s: s.quantization(dynamic={**DYNAMIC, r"-:.*o_proj": {}}),
    ),
    odd(
        "excluded-and-dense",
        "gptq",
        "",
        lambda s: (_dense(O_PROJ)(s), s.quantization(dynamic={**DYNAMIC, r"-:.*o_proj": {}})),
    ),  # type: ignore[operator]
    odd("one-left-dense", "gptq", "quantized-dense", _dense(DOWN)),
    faulty("fused-half-dense", "gptq", "quantized-fused", _dense(Q_PROJ)),
    faulty("fused-half-dense-gdn", "gptq", "quantized-fused", _dense(Z)),
    faulty("fused-other-group", "gptq", "quantized-fused quantized-shape", _regroup(GATE)),
    faulty(
        "nothing-quantized",
        "bf16",
        "quantized-mismatch",
        lambda s: s.config(
            lambda c: c.update(
                quantization_config={
                    "quant_method": "gptq",
                    "bits": 4,
                    "group_size": 128,
                    "sym": True,
                    "desc_act": False,
                }
            )
        ),
    ),
    odd("vision-packed", "gptq", "", _pack("model.visual.blocks.0.mlp.linear_fc1")),
    faulty(
        "embedding-packed",
        "gptq",
        "quantized-extra",
        _pack("model.language_model.embed_tokens"),
    ),
    faulty("scales-nan", "gptq", "scales-values", _set(O_PROJ, "scales", 3, float("nan"))),
    faulty("scales-inf", "gptq", "scales-values", _set(QKV, "scales", 0, float("inf"))),
    faulty("of-mlx", "gptq", "quantization-unknown", _foreign("mlx", "qzeros", "biases")),
    faulty("of-mlx-by-its-tensors", "gptq", "quantization-unknown", _foreign("gptq", "qzeros", "biases")),
    faulty("of-exllama", "gptq", "quantization-unknown", _foreign("exl3", "qweight", "trellis")),
    CorpusCase("of-llama-cpp", "bf16", _gguf, frozenset({"unreadable"}), "unreadable"),
    faulty("scales-nan-at-the-end", "gptq", "scales-values", _set(QKV, "scales", -1, float("nan"))),
    faulty(
        "norm-nan", "gptq", "weights-values", _set(f"{LAYER}.2.input_layernorm", "weight", -1, float("nan"))
    ),
    faulty("a-log-inf", "bf16", "weights-values", _set(f"{LAYER}.1.linear_attn", "A_log", 1, float("inf"))),
    faulty(
        "conv-inf",
        "gptq",
        "weights-values",
        _set(f"{LAYER}.1.linear_attn.conv1d", "weight", 9, float("-inf")),
    ),
    faulty("gain-zero", "bf16", "weights-values", _fill(f"{LAYER}.0.linear_attn.norm.weight", 0)),
    odd("norm-zero", "bf16", "", _fill(f"{LAYER}.0.input_layernorm.weight", 0)),
    faulty("output-head-zero", "gptq", "weights-values", _fill("lm_head.weight", 0)),
    faulty("output-head-nan", "bf16", "weights-values", _set("lm_head", "weight", 77_777, float("nan"))),
    faulty("embedding-zero", "gptq", "weights-values", _fill(f"{LAYER[:-7]}.embed_tokens.weight", 0)),
    faulty("module-of-one-value", "bf16", "weights-values", _fill(f"{DOWN}.weight", 0.25)),
    faulty("packed-module-of-one-value", "gptq", "weights-values", _fill(f"{DOWN}.qweight", 0x12345678)),
    odd("gates-of-zero", "bf16", "weights-values", _fill(f"{LAYER}.0.linear_attn.in_proj_a.weight", 0)),
    faulty("scales-zero", "gptq", "scales-values", lambda s: s.tensor(f"{O_PROJ}.scales", torch.zeros_like)),
    faulty(
        "embedding-short",
        "gptq",
        "plain-shape",
        lambda s: s.tensor("model.language_model.embed_tokens.weight", lambda t: t[:-128]),
    ),
    faulty(
        "head-of-int8",
        "gptq",
        "plain-dtype",
        lambda s: s.tensor("lm_head.weight", lambda t: t.to(torch.int8)),
    ),
    faulty("packed-scale-missing", "packed", "weights-missing", _drop(f"{O_PROJ}.weight_scale")),
    faulty(
        "packed-shape",
        "packed",
        "quantized-shape",
        lambda s: s.tensor(f"{O_PROJ}.weight_packed", lambda t: t[:, :-1]),
    ),
    faulty(
        "packed-ignored",
        "packed",
        "quantized-mismatch",
        lambda s: s.quantization(ignore=["re:.*mtp.*", "re:.*in_proj_[ab]$", "re:.*visual.*", O_PROJ]),
    ),
    faulty(
        "awq-without-list", "awq", "quantized-mismatch", lambda s: s.quantization(modules_to_not_convert=None)
    ),
    faulty(
        "awq-under-gptq-name",
        "awq",
        "quantized-mismatch",
        lambda s: s.quantization(quant_method="gptq", desc_act=False, sym=True, modules_to_not_convert=None),
    ),
    faulty(
        "auto-round-other-group", "auto-round", "quantized-shape", lambda s: s.quantization(group_size=32)
    ),
    faulty("fp8-scale-missing", "fp8", "plain-dtype", _drop(f"{O_PROJ}.weight_scale_inv")),
    faulty(
        "bf16-fp8-weight",
        "bf16",
        "plain-dtype",
        lambda s: s.tensor(f"{O_PROJ}.weight", lambda t: t.to(torch.float8_e4m3fn)),
    ),
)
