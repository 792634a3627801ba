"""Faults that look right at first sight; `check` once called each of them good."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import torch

from .case import INDEX, MTP_FILE, CorpusCase, Tensors, Workshop, faulty, odd

O_PROJ = "model.language_model.layers.3.self_attn.o_proj"
FC1 = "model.visual.blocks.0.mlp.linear_fc1"
Apply = Callable[[Workshop], object]


def _without(key: str, mark: str) -> Apply:
    """The list or table ``key`` of quantization_config without the entries that name ``mark``."""

    def change(config: dict[str, Any]) -> None:
        quantization = config["quantization_config"]
        entries = quantization[key]
        if isinstance(entries, dict):
            quantization[key] = {name: value for name, value in entries.items() if mark not in name}
        else:
            quantization[key] = [name for name in entries if mark not in name]

    return lambda shop: shop.config(change)


def _no_blocks(shop: Workshop) -> None:
    """AutoRound without a list of blocks quantizes every linear; the head is excluded, the tower is not."""
    shop.quantization(block_name_to_quantize=None)
    shop.config(lambda c: c["quantization_config"]["extra_config"].update({".*mtp.*": {"bits": 16}}))


def _fp8_vision(shop: Workshop) -> None:
    def change(tensors: Tensors) -> None:
        rows, columns = tensors[f"{FC1}.weight"].shape
        tensors[f"{FC1}.weight"] = tensors[f"{FC1}.weight"].to(torch.float8_e4m3fn)
        tensors[f"{FC1}.weight_scale_inv"] = torch.ones(
            -(-rows // 128), -(-columns // 128), dtype=torch.bfloat16
        )

    shop.shard(shop.file_of(f"{FC1}.weight"), change)


def _weight_beside_qweight(shop: Workshop) -> None:
    weight = torch.ones(256, 1024, dtype=torch.bfloat16)
    shop.shard(shop.file_of(f"{O_PROJ}.qweight"), lambda t: t.update({f"{O_PROJ}.weight": weight}))


def _recoded(name: str, encoding: str) -> Apply:
    """Store a JSON file in another encoding than UTF-8: `json.loads` of bytes guesses it, transformers does not."""

    def apply(shop: Workshop) -> None:
        path = shop.path(name)
        path.write_bytes(path.read_text().encode(encoding))

    return apply


def _utf_16_header(shop: Workshop) -> None:
    path = shop.path(MTP_FILE)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.dumps(json.loads(raw[8 : 8 + length])).encode("utf-16-le")
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


def _metadata(value: object) -> Apply:
    return lambda shop: shop.header(MTP_FILE, lambda header: header.update(__metadata__=value))


def _nan_in_header(shop: Workshop) -> None:
    shop.header(MTP_FILE, lambda header: header["mtp.norm.weight"].update(extra=float("nan")))


# Small projections and the vision tower are stored in BF16, but the config makes vLLM build them quantized.
UNLISTED: tuple[CorpusCase, ...] = (
    faulty(
        "fp8-small-projections-unlisted",
        "fp8",
        "quantized-mismatch",
        _without("modules_to_not_convert", "in_proj"),
    ),
    faulty("fp8-vision-unlisted", "fp8", "quantized-mismatch", _without("modules_to_not_convert", "visual")),
    faulty(
        "packed-small-projections-unlisted", "packed", "quantized-mismatch", _without("ignore", "in_proj")
    ),
    faulty("packed-vision-unlisted", "packed", "quantized-mismatch", _without("ignore", "visual")),
    faulty(
        "packed-vision-by-its-original-name",  # patterns are matched against vLLM's names, `visual.…`
        "packed",
        "quantized-mismatch",
        lambda s: s.quantization(ignore=["lm_head", "re:.*mtp.*", "re:.*in_proj_[ab]$", "re:model.visual.*"]),
    ),
    faulty(
        "awq-small-projections-unlisted",
        "awq",
        "quantized-mismatch",
        _without("modules_to_not_convert", "in_proj"),
    ),
    faulty("awq-vision-unlisted", "awq", "quantized-mismatch", _without("modules_to_not_convert", "visual")),
    faulty(
        "auto-round-small-projections-unlisted",
        "auto-round",
        "quantized-mismatch",
        lambda s: s.quantization(extra_config=None),
    ),
    faulty("auto-round-vision-without-block-list", "auto-round", "quantized-mismatch", _no_blocks),
    faulty(
        "gptq-list-that-names-small-projections",
        "gptq",
        "quantized-mismatch",
        lambda s: s.quantization(
            dynamic={r"-:^mtp\.": {}}, modules_in_block_to_quantize=["linear_attn", "self_attn", "mlp"]
        ),
    ),
)
# The safetensors library refuses these headers, transformers these configs.
STRICTNESS: tuple[CorpusCase, ...] = (
    faulty("header-in-utf-16", "bf16", "shard-unreadable", _utf_16_header),
    faulty("header-with-nan", "bf16", "shard-unreadable", _nan_in_header),
    faulty("header-with-a-lone-surrogate", "bf16", "shard-unreadable", _metadata({"a": "\ud800"})),
    faulty("metadata-is-a-list", "bf16", "shard-unreadable", _metadata([])),
    faulty("metadata-is-a-number", "bf16", "shard-unreadable", _metadata(0)),
    faulty("metadata-is-a-string", "bf16", "shard-unreadable", _metadata("")),
    CorpusCase(
        "config-with-bom",
        "bf16",
        _recoded("config.json", "utf-8-sig"),
        frozenset({"unreadable"}),
        "unreadable",
    ),
    CorpusCase(
        "config-in-utf-16",
        "bf16",
        _recoded("config.json", "utf-16-le"),
        frozenset({"unreadable"}),
        "unreadable",
    ),
    faulty("index-in-utf-16", "bf16", "index-unreadable", _recoded(INDEX, "utf-16-le")),
)
OTHER: tuple[CorpusCase, ...] = (
    faulty("fp8-vision-quantized-though-listed", "fp8", "quantized-mismatch", _fp8_vision),
    faulty("weight-beside-qweight", "gptq", "tensor-unknown", _weight_beside_qweight),
    faulty(
        "auto-round-unknown-packing",
        "auto-round",
        "quantization-settings",
        lambda s: s.quantization(packing_format="auto_round"),
    ),
    odd(
        "template-without-endif",
        "bf16",
        "chat-template-missing",
        lambda s: s.path("chat_template.jinja").write_text("{% if x %}{{ x }}"),
    ),
)
NEAR_MISSES: tuple[CorpusCase, ...] = (*UNLISTED, *STRICTNESS, *OTHER)
