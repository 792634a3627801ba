"""Faults in what a server needs beside the weights."""

from __future__ import annotations

import json

import torch

from gptq_hybrid.checkpoint.draft_vocab_file import (
    DRAFT_VOCAB_FILE,
    DraftVocab,
    read_vocab_size,
    write_draft_vocab,
)
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.checkpoint.vocabulary import read_vocabulary

from .case import Tensors, Workshop, faulty, odd


def _vision(shop: Workshop, count: int | None) -> None:
    """Drop the first ``count`` vision tensors of each file; all of them for None."""
    for path in sorted(shop.folder.glob("model-*.safetensors")):

        def drop(tensors: Tensors) -> None:
            for name in sorted(n for n in tensors if n.startswith("model.visual."))[:count]:
                del tensors[name]

        shop.shard(path.name, drop)


def _rename(shop: Workshop, old: str, new: str) -> None:
    for path in sorted(shop.folder.glob("model-*.safetensors")):

        def change(tensors: Tensors) -> None:
            for name in [n for n in tensors if n.startswith(old)]:
                tensors[new + name.removeprefix(old)] = tensors.pop(name)

        shop.shard(path.name, change)


def _no_template(shop: Workshop) -> None:
    shop.delete("chat_template.jinja")
    if "chat_template" in json.loads((shop.folder / "tokenizer_config.json").read_text()):
        shop.json("tokenizer_config.json", lambda c: c.pop("chat_template"))


def _mrope(shop: Workshop) -> None:
    shop.config(lambda c: c["rope_parameters"].update(mrope_section=[11, 11, 10], mrope_interleaved=True))


def _add(name: str) -> object:
    return lambda shop: shop.shard(
        "model-00001-of-00002.safetensors", lambda t: t.update({name: torch.zeros(8, dtype=torch.bfloat16)})
    )


def _cut(name: str) -> object:
    def apply(shop: Workshop) -> None:
        path = shop.path(name)
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) * 2 // 3])

    return apply


def _bias(shop: Workshop) -> None:
    """Add the zero biases that older tools wrote beside every GPTQ linear."""
    up = "model.language_model.layers.0.mlp.up_proj"
    shop.shard(
        shop.file_of(f"{up}.qweight"),
        lambda t: t.update({f"{up}.bias": torch.zeros(8, dtype=torch.bfloat16)}),
    )


def _draft_vocabulary(*, foreign: bool) -> object:
    """Add a draft vocabulary: of this checkpoint's tokenizer, or (``foreign``) of another."""

    def apply(shop: Workshop) -> None:
        files = LocalFiles(shop.folder)
        tokenizer = "0" * 64 if foreign else read_vocabulary(files).sha256
        vocab = DraftVocab(tokenizer, read_vocab_size(files), tuple(range(64)), {}, {})
        write_draft_vocab(shop.folder / DRAFT_VOCAB_FILE, vocab)

    return apply


SERVING_CASES = (
    odd("draft-vocabulary", "bf16", "", _draft_vocabulary(foreign=False)),
    odd("draft-vocabulary-of-another-tokenizer", "bf16", "draft-vocab", _draft_vocabulary(foreign=True)),
    odd("draft-vocabulary-without-mtp", "bf16", "", _draft_vocabulary(foreign=True), mtp=False),
    faulty("no-tokenizer", "bf16", "tokenizer-missing", lambda s: s.delete("tokenizer.json")),
    faulty("tokenizer-cut", "bf16", "companion-unreadable", _cut("tokenizer.json")),
    faulty("tokenizer-config-cut", "bf16", "companion-unreadable", _cut("tokenizer_config.json")),
    faulty("processor-cut", "bf16", "companion-unreadable", _cut("preprocessor_config.json")),
    odd("no-tokenizer-config", "bf16", "tokenizer-missing", lambda s: s.delete("tokenizer_config.json")),
    faulty(
        "no-processor",
        "bf16",
        "processor-missing",
        lambda s: s.delete("preprocessor_config.json", "video_preprocessor_config.json"),
    ),
    odd(
        "no-video-processor",
        "bf16",
        "processor-missing",
        lambda s: s.delete("video_preprocessor_config.json"),
    ),
    odd("no-chat-template", "bf16", "chat-template-missing", _no_template),
    odd(
        "broken-chat-template",
        "bf16",
        "chat-template-missing",
        lambda s: s.path("chat_template.jinja").write_text("{% for m in messages %}{{ m"),
    ),
    odd("no-vision-tensors", "bf16", "vision-missing", lambda s: _vision(s, None)),
    faulty("half-the-vision-tensors", "bf16", "vision-missing", lambda s: _vision(s, 3)),
    odd("text-only", "bf16-text", "", lambda s: None),
    faulty("text-only-mrope", "bf16-text", "text-only-mrope", _mrope),
    odd("text-only-mrope-without-mtp", "bf16-text", "", _mrope, mtp=False),
    faulty("text-only-before-0.27", "bf16-text", "text-only-release", lambda s: None, vllm="0.26.0"),
    faulty("text-only-mtp-before-0.28", "bf16-text", "text-only-release", lambda s: None, vllm="0.27.1"),
    odd("text-only-long-names", "bf16-text", "", lambda s: _rename(s, "model.", "model.language_model.")),
    faulty(
        "text-only-long-names-0.27",
        "bf16-text",
        "names-prefix",
        lambda s: _rename(s, "model.", "model.language_model."),
        vllm="0.27.0",
        mtp=False,
    ),
    faulty("short-names", "bf16", "names-prefix", lambda s: _rename(s, "model.language_model.", "model.")),
    faulty(
        "other-architecture",
        "bf16",
        "config-architecture",
        lambda s: s.config(lambda c: c.update(architectures=["LlamaForCausalLM"])),
    ),
    faulty(
        "no-architecture", "bf16", "config-architecture", lambda s: s.config(lambda c: c.pop("architectures"))
    ),
    faulty(
        "no-hidden-size",
        "bf16",
        "plain-shape",
        lambda s: s.config(lambda c: c["text_config"].pop("hidden_size")),
    ),
    faulty(
        "llama-first",
        "bf16",
        "config-class",
        lambda s: s.config(lambda c: c["architectures"].insert(0, "LlamaForCausalLM")),
    ),
    odd(
        "unknown-architecture-first",
        "bf16",
        "config-class",
        lambda s: s.config(lambda c: c["architectures"].insert(0, "SomethingForCausalLM")),
    ),
    faulty(
        "text-class-with-a-tower",
        "gptq",
        "config-class",
        lambda s: s.config(lambda c: c.update(architectures=["Qwen3_5ForCausalLM"])),
    ),
    faulty(
        "whole-number-for-epsilon",
        "bf16",
        "config-values",
        lambda s: s.config(lambda c: c["text_config"].update(rms_norm_eps=1)),
    ),
    odd(
        "whole-number-for-epsilon-old-vllm",
        "bf16",
        "config-values",
        lambda s: s.config(lambda c: c["text_config"].update(rms_norm_eps=1)),
        vllm="0.29.0",
    ),
    faulty(
        "unknown-activation",
        "bf16",
        "config-values",
        lambda s: s.config(lambda c: c["text_config"].update(hidden_act="gelu")),
    ),
    faulty(
        "tied-beside-a-head",
        "bf16",
        "embeddings-tied",
        lambda s: s.config(lambda c: c["text_config"].update(tie_word_embeddings=True)),
    ),
    faulty(
        "negative-layers",
        "bf16",
        "config-dimensions",
        lambda s: s.config(lambda c: c["text_config"].update(num_hidden_layers=-4)),
    ),
    faulty(
        "other-layers",
        "bf16",
        "weights-missing",
        lambda s: s.config(
            lambda c: c["text_config"].update(num_hidden_layers=8, layer_types=["linear_attention"] * 8)
        ),
    ),
    faulty(
        "unknown-tensor", "bf16", "tensor-unknown", _add("model.language_model.layers.0.mlp.extra.weight")
    ),
    odd(
        "unknown-tensor-old-vllm",
        "bf16",
        "tensor-unknown",
        _add("model.language_model.layers.0.mlp.extra.weight"),
        vllm="0.22.0",
    ),
    odd("unknown-bias", "gptq", "tensor-unknown", _bias),
    odd("newer-vllm", "bf16", "vllm-release", lambda s: None, vllm="0.99"),
    faulty("vllm-before-this-family", "bf16", "vllm-release", lambda s: None, vllm="0.10"),
    odd("older-vllm", "bf16", "vllm-release parser-unknown", lambda s: None, vllm="0.18.0"),
    odd(
        "json-tools-before-0.19",
        "bf16",
        "vllm-release parser-unknown",
        lambda s: s.path("chat_template.jinja").write_text("{{ tools }}<tool_call>"),
        vllm="0.17",
    ),
)
