"""Checkpoints about which the checker and vLLM disagree today, by kind; `README.md` says what decides in vLLM.

``TO_MEND`` is a specification for whoever mends the checker. A test holds each entry to its word: once the checker
agrees with vLLM, the entry has to go.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .made import GROUP, HIDDEN, INDEX, INTERMEDIATE, VOCAB, Made, build

BODY = "model-00001-of-00001.safetensors"
LAYER = "model.language_model.layers"
Change = Callable[[Path], object]
SMALL = frozenset({"small"})


@dataclass(frozen=True)
class Kind:
    """One kind of disagreement.

    Attributes:
        id: its name.
        number: its group; `README.md` has a section for each.
        says: what the checker says today; vLLM does the other.
        why: what vLLM does, in one sentence.
        made, change: how to build one.
        folder: what the checkpoint's folder is called.
    """

    id: str
    number: int
    says: str
    why: str
    made: Made
    change: Change | None = None
    folder: str = "checkpoint"

    def build(self, scratch: Path, companions: Path) -> Path:
        """Write the checkpoint below ``scratch``."""
        path = build(self.made, scratch / self.folder, companions)
        if self.change:
            self.change(path)
        return path


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Change a JSON file."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def config(change: Callable[[dict[str, Any]], object]) -> Change:
    return edit("config.json", change)


def quantization(**changes: Any) -> Change:
    """Change ``quantization_config``; None removes a key."""

    def merge(content: dict[str, Any]) -> None:
        for key, value in changes.items():
            owner = content["quantization_config"]
            owner.pop(key, None) if value is None else owner.update({key: value})

    return config(merge)


def tensors(change: Callable[[dict[str, torch.Tensor]], object], file: str = BODY) -> Change:
    """Change the tensors of one file, and the index with them."""

    def apply(folder: Path) -> None:
        content = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
        change(content)
        (folder / file).unlink()
        save_file({n: t.contiguous() for n, t in content.items()}, folder / file, metadata={"format": "pt"})
        index = json.loads((folder / INDEX).read_text())
        others = {n: f for n, f in index["weight_map"].items() if f != file}
        files = {*others.values(), file}
        total = sum(t.nbytes for f in files if (folder / f).exists() for t in load_file(folder / f).values())
        index = {"metadata": {"total_size": total}, "weight_map": others | dict.fromkeys(content, file)}
        (folder / INDEX).write_text(json.dumps(index))

    return apply


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def renamed(old: str, new: str) -> Change:
    """A weight file under another name, in the index too."""

    def apply(folder: Path) -> None:
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)
        edit(INDEX, lambda i: i.update(weight_map={n: new if f == old else f for n, f in i["weight_map"].items()}))(
            folder
        )

    return apply


def cast(suffix: str, dtype: torch.dtype) -> Change:
    return tensors(lambda t: t.update({n: v.to(dtype) for n, v in t.items() if n.endswith(suffix)}))


def _packed_embedding(t: dict[str, torch.Tensor]) -> None:
    name = "model.language_model.embed_tokens"
    del t[f"{name}.weight"]
    t[f"{name}.weight_packed"] = torch.ones(VOCAB, HIDDEN // 8, dtype=torch.int32)
    t[f"{name}.weight_scale"] = torch.ones(VOCAB, HIDDEN // GROUP, dtype=torch.bfloat16)
    t[f"{name}.weight_shape"] = torch.tensor([VOCAB, HIDDEN])


def _packed_like(name: str, bits: int) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(t: dict[str, torch.Tensor]) -> None:
        t[f"{name}.weight_packed"] = torch.ones(HIDDEN, INTERMEDIATE * bits // 32, dtype=torch.int32)

    return change


def _weights(bits: int) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "group_size": GROUP, "strategy": "group"}


def _ignored(*names: str) -> list[str]:
    return ["re:.*visual.*", *names]


SMALL_NAMES = ["re:.*in_proj_[ab]$"]
MTP = ["re:^mtp.*"]
FUSED_MTP = [
    "mtp.fc",
    *(f"mtp.layers.0.{n}" for n in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")),
]
GPTQ, AWQ, ROUND, PACKED, FP8 = (Made(format=f) for f in ("gptq", "awq", "auto-round", "packed", "fp8"))
HEAD = frozenset({"lm_head"})


def _without_prefix(names: list[str]) -> list[str]:
    return names


def _gptq_to_group(t: dict[str, torch.Tensor]) -> None:
    """Nothing."""


CANDIDATES: tuple[Kind, ...] = (
    # 1
    Kind("ignore-fused-mtp", 1, "faulty", "", PACKED, quantization(ignore=_ignored("lm_head", *SMALL_NAMES, *FUSED_MTP))),
    Kind("ignore-fused-small", 1, "faulty", "", PACKED, quantization(ignore=_ignored("lm_head", *MTP, "re:.*in_proj_ba$"))),
    Kind("auto-round-fused-small", 1, "faulty", "", ROUND, quantization(extra_config={f"{LAYER}.{i}.linear_attn.in_proj_ba": {"bits": 16} for i in range(3)})),
    Kind("auto-round-small-regex", 1, "serves", "", ROUND, quantization(extra_config={".*in_proj_a": {"bits": 16}, ".*in_proj_b": {"bits": 16}})),
    Kind("auto-round-small-regex-one", 1, "serves", "", ROUND, quantization(extra_config={".*in_proj_[ab]": {"bits": 16}})),
    Kind("auto-round-small-vllm-names", 1, "serves", "", ROUND, quantization(extra_config={f"language_model.model.layers.{i}.linear_attn.in_proj_{x}": {"bits": 16} for i in range(3) for x in "ab"})),
    Kind("awq-fused-small", 1, "faulty", "", AWQ, quantization(modules_to_not_convert=["mtp", "visual", "in_proj_ba"])),
    Kind("awq-one-shard", 1, "faulty", "", AWQ, quantization(modules_to_not_convert=["mtp", "visual", "in_proj_a"])),
    Kind("awq-fused-mtp", 1, "faulty", "", AWQ, quantization(modules_to_not_convert=["in_proj_a", "in_proj_b", "visual", *FUSED_MTP])),
    Kind("fp8-fused", 1, "faulty", "", Made(format="fp8", style="fused")),
    Kind("gptq-dynamic-fused-small", 1, "faulty", "", GPTQ, quantization(dynamic={r"-:^mtp\.": {}, r"-:.*in_proj_ba": {}})),
    # 2
    *(Kind(f"count-{c}-{f}", 2, "faulty", "", Made(count=c, format=f)) for c in ("absent", "root-1", "nextn-1", "text-0") for f in ("bf16", "gptq")),
    Kind("count-absent-no-head", 2, "serves", "", Made(count="absent", head="absent", format="gptq")),
    Kind("count-2-one-stored", 2, "serves", "", Made(text={"mtp_num_hidden_layers": 2}, format="gptq")),
    # 3
    *(Kind(f"tied-{r}-{t}-{'own' if o else 'none'}-{f}", 3, "?", "", Made(tied=(r, t), own_head=o, format=f)) for r in (True, False, None) for t in (True, False, None) for o in (True, False) for f in ("bf16", "gptq")),
    Kind("tied-text-own", 3, "?", "", Made(nested=False, tied=(None, True), own_head=True, format="gptq")),
    Kind("tied-text-none", 3, "?", "", Made(nested=False, tied=(None, True), own_head=False, format="gptq")),
    # 4
    Kind("zero-declared-not-stored", 4, "serves", "", Made(format="packed", zero=(False, True))),
    Kind("zero-stored-not-declared", 4, "serves", "", Made(format="packed", zero=(True, False))),
    Kind("zero-both", 4, "serves", "", Made(format="packed", zero=(True, True))),
    # 5
    Kind("head-packed-target-linear", 5, "serves", "", Made(format="packed", packed=HEAD), config(lambda c: c["quantization_config"]["config_groups"]["group_0"].update(targets=["Linear"]))),
    Kind("head-packed-target-named", 5, "serves", "", Made(format="packed", packed=HEAD)),
    Kind("head-packed-target-regex", 5, "serves", "", Made(format="packed", packed=HEAD), config(lambda c: c["quantization_config"]["config_groups"]["group_0"].update(targets=["Linear", "re:.*lm_head"]))),
    Kind("head-packed-ignored-targeted", 5, "serves", "", Made(format="packed", packed=HEAD), both(config(lambda c: c["quantization_config"]["config_groups"]["group_0"].update(targets=["Linear", "re:.*lm_head"])), config(lambda c: c["quantization_config"]["ignore"].append("lm_head")))),
    Kind("head-dense-targeted", 5, "serves", "", Made(format="packed"), both(config(lambda c: c["quantization_config"]["config_groups"]["group_0"].update(targets=["Linear", "re:.*lm_head"])), config(lambda c: c["quantization_config"]["ignore"].remove("lm_head")))),
    Kind("embedding-packed", 5, "serves", "", PACKED, tensors(_packed_embedding)),
    Kind("auto-round-head-undeclared", 5, "serves", "", Made(format="auto-round", packed=HEAD), config(lambda c: c["quantization_config"]["extra_config"].pop("lm_head"))),
    Kind("auto-round-head-declared", 5, "serves", "", Made(format="auto-round", packed=HEAD)),
    Kind("awq-head-declared", 5, "serves", "", Made(format="awq", packed=HEAD)),
    Kind("awq-head-undeclared", 5, "serves", "", Made(format="awq", packed=HEAD), quantization(lm_head=False)),
    Kind("fp8-head", 5, "serves", "", Made(format="fp8", packed=HEAD)),
    Kind("packed-small-ignored-fused", 5, "serves", "", Made(format="packed", packed=SMALL), config(lambda c: c["quantization_config"]["ignore"].append("re:.*in_proj_ba.*"))),
    Kind("gptq-small", 5, "faulty", "", Made(format="gptq", packed=SMALL)),
    Kind("gptq-vision", 5, "faulty", "", Made(format="gptq", packed=frozenset({"vision"}))),
    Kind("fp8-small", 5, "serves", "", Made(format="fp8", packed=SMALL)),
    Kind("packed-small", 5, "serves", "", Made(format="packed", packed=SMALL)),
    Kind("awq-small", 5, "serves", "", Made(format="awq", packed=SMALL)),
    Kind("auto-round-small", 5, "serves", "", Made(format="auto-round", packed=SMALL)),
    Kind("packed-vision", 5, "serves", "", Made(format="packed", packed=frozenset({"vision"}))),
    # 6
    *(Kind(f"method-{m.replace('/', '-')}", 6, "serves", "", Made(format=f), quantization(quant_method=m)) for m, f in (("auto_round", "auto-round"), ("intel/auto-round", "auto-round"), ("gptqmodel", "gptq"), ("GPTQ", "gptq"), ("awq_marlin", "awq"), ("gptq_marlin", "gptq"), ("compressed_tensors", "packed"), ("fbgemm_fp8", "fp8"))),
    *(Kind(f"method-none-{f}", 6, "serves", "", Made(format=f), quantization(quant_method=None)) for f in ("gptq", "awq", "auto-round", "packed", "fp8")),
    Kind("method-torchao-dense", 6, "serves", "", Made(), config(lambda c: c.update(quantization_config={"quant_method": "torchao"}))),
    Kind("method-bitsandbytes-dense", 6, "serves", "", Made(), config(lambda c: c.update(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}))),
    Kind("method-empty", 6, "serves", "", Made(), config(lambda c: c.update(quantization_config={}))),
    Kind("method-null", 6, "serves", "", Made(), config(lambda c: c.update(quantization_config=None))),
    # 8
    Kind("vl-class-on-text-config", 8, "serves", "", Made(nested=False, architecture="Qwen3_5ForConditionalGeneration")),
    Kind("text-class-on-nested-config", 8, "faulty", "", Made(architecture="Qwen3_5ForCausalLM")),
    Kind("text-class-on-nested-config-gptq", 8, "faulty", "", Made(architecture="Qwen3_5ForCausalLM", format="gptq")),
    Kind("other-architecture-first", 16, "serves", "", Made(), config(lambda c: c.update(architectures=["LlamaForCausalLM", *c["architectures"]]))),
    Kind("other-architecture-second", 16, "serves", "", Made(), config(lambda c: c["architectures"].append("LlamaForCausalLM"))),
    # 10
    *(Kind(f"head-{h}-{f}", 10, "?", "", Made(head=h, format=f)) for h in ("model.mtp", "language_model.mtp", "subfolder") for f in ("bf16", "gptq")),
    # 11
    *(Kind(f"absent-{k}", 11, "faulty", "", Made(absent=frozenset({k}))) for k in ("head_dim", "layer_types", "full_attention_interval", "linear_conv_kernel_dim", "attn_output_gate", "linear_key_head_dim", "num_key_value_heads", "vocab_size", "intermediate_size")),
    Kind("absent-layer_types-and-interval", 11, "faulty", "", Made(absent=frozenset({"layer_types", "full_attention_interval"}))),
    Kind("absent-head_dim-256", 11, "faulty", "", Made(absent=frozenset({"head_dim"}), text={"head_dim": None})),
    # 12
    Kind("quantize-config-alone", 12, "?", "", GPTQ, lambda f: (f / "quantize_config.json").write_text(json.dumps(_pop(f)))),
    # 15
    Kind("other-suffix", 15, "serves", "", GPTQ, renamed("mtp.safetensors", "mtp.st")),
    Kind("capitals", 15, "serves", "", GPTQ, renamed("mtp.safetensors", "mtp.SAFETENSORS")),
    Kind("hidden", 15, "serves", "", GPTQ, renamed("mtp.safetensors", ".mtp.safetensors")),
    Kind("folder-as-shard", 15, "serves", "", GPTQ, lambda f: (f / "x.safetensors").mkdir()),
    Kind("brackets", 15, "serves", "", GPTQ, None, "check[1]point"),
    Kind("brackets-2", 15, "serves", "", GPTQ, None, "[checkpoint]"),
    Kind("body-other-suffix", 15, "serves", "", GPTQ, renamed(BODY, "model.st")),
    # 16
    Kind("bad-regex", 16, "serves", "", GPTQ, quantization(dynamic={r"-:^mtp\.": {}, "+:*o_proj": {"bits": 4}})),
    Kind("bits-float", 16, "serves", "", GPTQ, quantization(bits=4.0)),
    Kind("group-float", 16, "serves", "", GPTQ, quantization(group_size=32.0)),
    Kind("bits-text", 16, "serves", "", GPTQ, quantization(bits="4")),
    *(Kind(f"eps-{v!r}", 16, "serves", "", Made(text={"rms_norm_eps": v})) for v in ("1e-6", float("nan"), 1)),
    Kind("eps-1e400", 16, "serves", "", Made(), lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e400'))),
    Kind("hidden-act", 16, "serves", "", Made(text={"hidden_act": "sillu"})),
    Kind("rope-type", 16, "serves", "", Made(text={"rope_parameters": {"rope_type": "sideways", "rope_theta": 1e7, "partial_rotary_factor": 0.25}})),
    Kind("fp8-static-block", 16, "serves", "", FP8, quantization(activation_scheme="static")),
    Kind("fp8-block-null", 16, "serves", "", FP8, quantization(weight_block_size=None)),
    Kind("auto-round-3", 16, "serves", "", ROUND, quantization(bits=3)),
    Kind("auto-round-asym", 16, "serves", "", ROUND, quantization(sym=False)),
    Kind("auto-round-gptq-backend", 16, "serves", "", ROUND, quantization(packing_format="auto_round:auto_awq")),
    # 17
    Kind("g-idx-int64", 17, "faulty", "", GPTQ, cast(".g_idx", torch.int64)),
    Kind("scales-fp32", 17, "faulty", "", GPTQ, cast(".scales", torch.float32)),
    Kind("packed-scales-fp32", 17, "faulty", "", PACKED, cast(".weight_scale", torch.float32)),
    Kind("fp8-scales-fp32", 17, "faulty", "", FP8, cast(".weight_scale_inv", torch.float32)),
    Kind("sym-1", 17, "faulty", "", GPTQ, quantization(sym=1)),
    Kind("desc-act-0", 17, "faulty", "", GPTQ, quantization(desc_act=0)),
    Kind("no-qzeros", 17, "faulty", "", GPTQ, tensors(lambda t: [t.pop(n) for n in list(t) if n.endswith(".qzeros")])),
    Kind("no-g-idx", 17, "faulty", "", GPTQ, tensors(lambda t: [t.pop(n) for n in list(t) if n.endswith(".g_idx")])),
    Kind("qweight-int64", 17, "faulty", "", GPTQ, cast(".qweight", torch.int64)),
    # 7
    Kind("group-class-first", 7, "serves", "", PACKED, config(lambda c: c["quantization_config"].update(config_groups={"group_0": {"targets": ["Linear"], "weights": _weights(4)}, "group_1": {"targets": ["re:.*down_proj"], "weights": _weights(8)}}))),
    Kind("group-name-first", 7, "serves", "", PACKED, config(lambda c: c["quantization_config"].update(config_groups={"group_0": {"targets": ["re:.*down_proj"], "weights": _weights(8)}, "group_1": {"targets": ["Linear"], "weights": _weights(4)}}))),
    Kind("group-class-first-packed-so", 7, "serves", "", PACKED, both(tensors(lambda t: [_packed_like(n.removesuffix(".weight_packed"), 8)(t) for n in list(t) if n.endswith("down_proj.weight_packed")]), config(lambda c: c["quantization_config"].update(config_groups={"group_0": {"targets": ["Linear"], "weights": _weights(4)}, "group_1": {"targets": ["re:.*down_proj"], "weights": _weights(8)}})))),
    Kind("mixed-precision-short", 7, "serves", "", PACKED, both(tensors(lambda t: [_packed_like(n.removesuffix(".weight_packed"), 8)(t) for n in list(t) if n.endswith("down_proj.weight_packed")]), config(lambda c: (c["quantization_config"].update(format="mixed-precision"), c["quantization_config"]["config_groups"]["group_0"].update(format="pack-quantized"))))),
    Kind("mixed-precision-good", 7, "serves", "", PACKED, config(lambda c: (c["quantization_config"].update(format="mixed-precision"), c["quantization_config"]["config_groups"]["group_0"].update(format="pack-quantized")))),
)  # fmt: skip


def _pop(folder: Path) -> dict[str, Any]:
    out: list[Any] = []
    config(lambda c: out.append(c.pop("quantization_config")))(folder)
    return out[0]  # type: ignore[no-any-return]
