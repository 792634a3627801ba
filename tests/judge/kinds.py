"""Checkpoints about which the checker and vLLM disagree today, by kind; `README.md` says what decides in vLLM.

``TO_MEND`` is a specification for whoever mends the checker. A test holds each entry to its word: once the checker
agrees with vLLM, the entry has to go.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from .made import GROUP, HIDDEN, INDEX, INTERMEDIATE, VOCAB, Made, build

BODY = "model-00001-of-00001.safetensors"
LAYER = "model.language_model.layers"
Change = Callable[[Path], object]
SMALL, HEAD, VISION = (frozenset({group}) for group in ("small", "lm_head", "vision"))


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
        mtp: whether MTP is asked for.
        excuses: of checkpoints drawn at random, those whose disagreement may be of this kind.
    """

    id: str
    number: int
    says: Literal["serves", "faulty"]
    why: str
    made: Made
    change: Change | None = None
    folder: str = "checkpoint"
    excuses: Callable[[Made], bool] | None = None
    mtp: bool = True

    def may_be(self, made: Made) -> bool:
        """Whether what checker and vLLM make of ``made`` may differ for this reason."""
        return self.excuses is not None and self.excuses(made)

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
        edit(
            INDEX,
            lambda i: i.update(weight_map={n: new if f == old else f for n, f in i["weight_map"].items()}),
        )(folder)

    return apply


def cast(suffix: str, dtype: torch.dtype) -> Change:
    return tensors(lambda t: t.update({n: v.to(dtype) for n, v in t.items() if n.endswith(suffix)}))


def _words(*shape: int) -> torch.Tensor:
    """Packed numbers, not all alike: that would be a fault of its own."""
    return torch.arange(shape[0] * shape[1], dtype=torch.int32).view(shape)


def _packed_embedding(t: dict[str, torch.Tensor]) -> None:
    name = "model.language_model.embed_tokens"
    del t[f"{name}.weight"]
    t[f"{name}.weight_packed"] = _words(VOCAB, HIDDEN // 8)
    t[f"{name}.weight_scale"] = torch.ones(VOCAB, HIDDEN // GROUP, dtype=torch.bfloat16)
    t[f"{name}.weight_shape"] = torch.tensor([VOCAB, HIDDEN])


def _in_eight_bits(t: dict[str, torch.Tensor]) -> None:
    """Every down_proj of the body in words of eight bits."""
    for name in [n for n in t if n.endswith("down_proj.weight_packed") and n.startswith("model.")]:
        t[name] = _words(HIDDEN, INTERMEDIATE // 4)


def _in_eight_bits_gptq(t: dict[str, torch.Tensor]) -> None:
    """q, k and v of the body in words of eight bits."""
    for name in [n for n in t if n.endswith((".q_proj.qweight", ".k_proj.qweight", ".v_proj.qweight"))]:
        n = t[name].shape[1]
        t[name] = _words(HIDDEN // 4, n)
        module = name.removesuffix(".qweight")
        t[f"{module}.qzeros"] = torch.full((HIDDEN // GROUP, n // 4), 0x7F7F7F7F, dtype=torch.int32)


def _nvfp4(t: dict[str, torch.Tensor]) -> None:
    """The body as NVIDIA's ModelOpt stores it in four-bit floats."""
    body = ("_proj", "in_proj_qkv", "in_proj_z")
    for name in list(t):
        if name.startswith(f"{LAYER}.") and name.endswith(tuple(f"{part}.weight" for part in body)):
            n, k = t[name].shape
            module = name.removesuffix(".weight")
            t[name] = _words(n, k // 2).to(torch.uint8)
            t[f"{module}.weight_scale"] = torch.ones(n, k // 16).to(torch.float8_e4m3fn)
            t[f"{module}.weight_scale_2"] = torch.tensor(0.5)
            t[f"{module}.input_scale"] = torch.tensor(0.5)


def _weights(bits: int) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "group_size": GROUP, "strategy": "group"}


def _groups(**groups: Any) -> Change:
    """``config_groups``: bits by target, in this order."""
    made = {
        f"group_{i}": {"targets": [target.replace("down", "re:.*down_proj")], "weights": _weights(bits)}
        for i, (target, bits) in enumerate(groups.items())
    }
    return quantization(config_groups=made)


def group_zero(**changes: Any) -> Change:
    return config(lambda c: c["quantization_config"]["config_groups"]["group_0"].update(changes))


def _no_vision(t: dict[str, torch.Tensor]) -> None:
    for name in [n for n in t if ".visual." in n]:
        del t[name]


def _mixed(folder: Path) -> None:
    quantization(format="mixed-precision")(folder)
    group_zero(format="pack-quantized")(folder)


def _alone(folder: Path) -> None:
    """The quantization config in a file of its own, and there alone."""
    taken: list[Any] = []
    config(lambda c: taken.append(c.pop("quantization_config")))(folder)
    (folder / "quantize_config.json").write_text(json.dumps(taken[0]))


def _eps(text: str) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"rms_norm_eps": 1e-06', f'"rms_norm_eps": {text}'))

    return apply


SMALL_NAMES = "re:.*in_proj_[ab]$"
KEPT = ("lm_head", "re:.*visual.*")
FUSED_MTP = [
    "mtp.fc",
    *(
        f"mtp.layers.0.{n}"
        for n in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    ),
]
BF16, GPTQ, AWQ, ROUND, PACKED, FP8 = (
    Made(format=form) for form in ("bf16", "gptq", "awq", "auto-round", "packed", "fp8")
)
_BF16 = {"bits": 16}
_COUNTS: tuple[Literal["absent", "root-1", "nextn-1"], ...] = ("absent", "root-1", "nextn-1")
_FORMS: tuple[Literal["bf16", "gptq"], ...] = ("bf16", "gptq")
_METHODS: tuple[tuple[str, Literal["auto-round", "gptq"]], ...] = (
    ("auto_round", "auto-round"), ("intel/auto-round", "auto-round"), ("gptqmodel", "gptq"), ("exl3", "gptq"),
)  # fmt: skip
_HEADS: tuple[Literal["model.mtp", "language_model.mtp"], ...] = ("model.mtp", "language_model.mtp")
_SMALL_BY_NAME = [f"{LAYER}.{i}.linear_attn.in_proj_{x}" for i in range(3) for x in "ab"]
_SCALES_LATE = "scales are cast as they are written, whatever float they come in"

NAMES = (
    Kind("ignore-fused-mtp", 1, "serves", "asks the list for the fused name first",
         PACKED, quantization(ignore=[*KEPT, SMALL_NAMES, *FUSED_MTP])),
    Kind("ignore-fused-small", 1, "serves", "asks the list for in_proj_ba first",
         PACKED, quantization(ignore=[*KEPT, "re:^mtp.*", "re:.*in_proj_ba$"])),
    Kind("auto-round-fused-small", 1, "serves", "asks extra_config for in_proj_ba first",
         ROUND, quantization(extra_config={f"{LAYER}.{i}.linear_attn.in_proj_ba": _BF16 for i in range(3)})),
    Kind("auto-round-vllms-names", 1, "serves", "has its own names in extra_config too",
         ROUND, quantization(extra_config={f"language_model.model.layers.{i}.linear_attn.in_proj_{x}": {"bits": 16}
                                           for i in range(3) for x in "ab"})),
    Kind("auto-round-short-names", 1, "faulty", "knows short names of modules, not of shards",
         ROUND, quantization(extra_config={"in_proj_a": _BF16, "in_proj_b": _BF16})),
    Kind("auto-round-short-paths", 1, "faulty", "knows short names of modules, not of shards",
         ROUND, quantization(extra_config={"linear_attn.in_proj_a": _BF16, "linear_attn.in_proj_b": _BF16})),
    Kind("awq-fused-small", 1, "serves", "asks the list for the fused name first",
         AWQ, quantization(modules_to_not_convert=["mtp", "visual", "in_proj_ba"])),
    Kind("awq-fused-mtp", 1, "serves", "asks the list for the fused name first",
         AWQ, quantization(modules_to_not_convert=["in_proj_a", "in_proj_b", "visual", *FUSED_MTP])),
    Kind("fp8-fused", 1, "serves", "asks the list for the fused name first",
         Made(format="fp8", style="fused")),
)  # fmt: skip
COUNT = tuple(
    Kind(f"mtp-count-{count}-{form}", 2, "serves", "builds one MTP layer, and loads it",
         Made(count=count, format=form))
    for count in _COUNTS for form in _FORMS
)  # fmt: skip
TIED = (
    Kind("tied-root-alone-no-head", 3, "faulty", "builds an lm_head of its own, which nothing writes",
         Made(tied=(True, None), own_head=False, format="gptq")),
    Kind("tied-root-not-text-no-head", 3, "faulty", "goes by text_config: an lm_head that nothing writes",
         Made(tied=(True, False), own_head=False)),
    Kind("tied-text-not-root-own-head", 3, "faulty", "ties, and throws the stored head away",
         Made(tied=(False, True), format="gptq")),
    Kind("tied-text-not-root-no-head", 3, "serves", "ties",
         Made(tied=(False, True), own_head=False)),
    Kind("tied-both-own-head", 3, "serves", "finds the head and unties",
         Made(tied=(True, True), format="gptq")),
    Kind("tied-root-own-head", 3, "serves", "loads the head", Made(tied=(True, None))),
    Kind("tied-text-only-own-head", 3, "serves", "finds the head and unties",
         Made(nested=False, tied=(None, True))),
)  # fmt: skip
ZERO = (
    Kind("zero-points-declared-alone", 4, "faulty", "leaves every weight_zero_point unwritten",
         Made(format="packed", zero=(False, True))),
    Kind("zero-points-stored-alone", 4, "faulty", "ends with an AttributeError that names no tensor",
         Made(format="packed", zero=(True, False))),
)  # fmt: skip
PLACES = (
    Kind("packed-head-target-linear", 5, "faulty", "builds lm_head dense: its class is not Linear",
         Made(format="packed", packed=HEAD), group_zero(targets=["Linear"])),
    Kind("packed-head-target-by-name", 5, "faulty", "calls it language_model.lm_head, which the target is not",
         Made(format="packed", packed=HEAD)),
    Kind("packed-head-ignored", 5, "faulty", "ignores `lm_head` in the draft, where the head has that name",
         Made(format="packed", packed=HEAD),
         both(group_zero(targets=["Linear", "re:.*lm_head"]),
              quantization(ignore=[*KEPT, SMALL_NAMES, "re:^mtp.*"]))),
    Kind("packed-embedding", 5, "faulty", "builds embed_tokens dense, whatever the config",
         PACKED, tensors(_packed_embedding)),
    Kind("dense-head-targeted", 5, "faulty", "builds lm_head packed",
         PACKED, both(group_zero(targets=["Linear", "re:.*lm_head"]),
                      quantization(ignore=["re:.*visual.*", SMALL_NAMES, "re:^mtp.*"]))),
    Kind("auto-round-head-undeclared", 5, "faulty", "builds lm_head dense",
         Made(format="auto-round", packed=HEAD, declared=frozenset())),
    Kind("awq-head-undeclared", 5, "faulty", "builds lm_head dense",
         Made(format="awq", packed=HEAD), quantization(lm_head=False)),
    Kind("fp8-head", 5, "faulty", "builds lm_head dense, whatever the config",
         Made(format="fp8", packed=HEAD)),
    Kind("packed-small-ignored", 5, "faulty", "builds in_proj_ba dense",
         Made(format="packed", packed=SMALL), quantization(ignore=[*KEPT, "re:^mtp.*", "re:.*in_proj_ba.*"])),
    Kind("fp8-small", 5, "faulty", "cannot fuse two shards of less than a block of 128 rows",
         Made(format="fp8", packed=SMALL)),
    Kind("gptq-small", 5, "serves", "builds packed whatever module owns integers",
         Made(format="gptq", packed=SMALL)),
    Kind("gptq-vision", 5, "serves", "builds packed whatever module owns integers",
         Made(format="gptq", packed=VISION)),
    Kind("packed-vision", 5, "serves", "builds the tower as the config says",
         Made(format="packed", packed=VISION)),
)  # fmt: skip
METHODS = (
    *(
        Kind(f"method-{name.replace('/', '-')}", 6, "faulty", "knows no such method",
             Made(format=form), quantization(quant_method=name))
        for name, form in _METHODS
    ),
    *(
        Kind(f"method-unsaid-{form}", 6, "faulty", "builds everything dense",
             Made(format=form), quantization(quant_method=None))
        for form in ("gptq", "awq", "auto-round", "packed", "fp8")
    ),
    Kind("method-torchao-unspecified", 6, "faulty", "wants quant_type",
         BF16, config(lambda c: c.update(quantization_config={"quant_method": "torchao"}))),
    Kind("method-deprecated", 6, "faulty", "refuses fbgemm_fp8 without a flag",
         FP8, quantization(quant_method="fbgemm_fp8")),
    Kind("modelopt-nvfp4", 6, "serves", "loads it", BF16, both(
        tensors(_nvfp4),
        config(lambda c: c.update(quantization_config={
            "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "kv_cache_scheme": None,
            "ignore": ["lm_head", "mtp*", "*visual*", *_SMALL_BY_NAME]})))),
)  # fmt: skip
GROUPS = (
    Kind("name-match-after-class-match", 7, "serves", "prefers a target that is a name, wherever it stands",
         PACKED, both(tensors(_in_eight_bits), _groups(Linear=4, down=8))),
    Kind("class-match-before-name-match", 7, "faulty", "prefers a target that is a name, wherever it stands",
         PACKED, _groups(Linear=4, down=8)),
    Kind("mixed-precision-shapes", 7, "faulty", "loads half of a matrix that is twice as wide",
         PACKED, both(tensors(_in_eight_bits), _mixed)),
)  # fmt: skip
RULES = (
    Kind("dynamic-by-vllms-names", 1, "serves", "asks rules for the fused name, and for no other", GPTQ, both(
        tensors(_in_eight_bits_gptq),
        quantization(dynamic={r"-:^mtp\.": {}, r"+:.*\.qkv_proj$": {"bits": 8}}))),
)  # fmt: skip
CLASSES = (
    Kind("multimodal-class-text-config", 8, "faulty", "looks for vision_config",
         Made(nested=False, architecture="Qwen3_5ForConditionalGeneration")),
    Kind("text-class-with-a-tower", 8, "faulty", "has no module called visual",
         Made(architecture="Qwen3_5ForCausalLM")),
)  # fmt: skip
PREFIXES = (
    Kind("head-under-language_model-unwanted", 10, "serves", "drops `mtp.` inside `language_model.` too",
         Made(head="language_model.mtp"), mtp=False),
)  # fmt: skip
DEFAULTS = (
    *(
        Kind(f"absent-{key}", 11, "serves", "has a default", Made(absent=frozenset({key})))
        for key in ("head_dim", "linear_conv_kernel_dim")
    ),
    Kind("absent-layer-types-and-interval", 11, "serves", "makes every fourth layer full attention",
         Made(absent=frozenset({"layer_types", "full_attention_interval"}))),
)  # fmt: skip
FILES = (
    *(
        Kind(f"file-{what}", 15, "faulty", 'looks for glob("*.safetensors") alone',
             GPTQ, renamed("mtp.safetensors", name))
        for what, name in (
            ("other-suffix", "mtp.st"), ("in-capitals", "mtp.SAFETENSORS"), ("hidden", ".mtp.safetensors"),
        )
    ),
    Kind("folder-with-brackets", 15, "faulty", "takes them for a pattern, and finds no weights",
         GPTQ, None, "check[1]point"),
    Kind("folder-called-safetensors", 15, "faulty", "opens it as a file where no index leaves it out", GPTQ,
         both(lambda folder: (folder / INDEX).unlink(), lambda folder: (folder / "x.safetensors").mkdir())),
)  # fmt: skip
VALUES = (
    Kind("dynamic-bad-regex", 16, "faulty", "compiles it", GPTQ,
         quantization(dynamic={r"-:^mtp\.": {}, "+:*o_proj": {"bits": 4}})),
    Kind("bits-as-float", 16, "faulty", "takes 4.0 for a size", GPTQ, quantization(bits=4.0)),
    Kind("eps-as-text", 16, "faulty", "transformers wants a float", BF16, _eps('"1e-6"')),
    Kind("eps-as-integer", 16, "faulty", "transformers wants a float", BF16, _eps("1")),
    Kind("unknown-hidden-act", 16, "faulty", "knows silu alone", Made(text={"hidden_act": "sillu"})),
    Kind("unknown-rope-type", 16, "faulty", "knows no such type",
         Made(text={"rope_parameters": {"rope_type": "sideways", "rope_theta": 1e7}})),
    Kind("other-architecture-first", 16, "faulty", "takes the first that it knows", BF16,
         config(lambda c: c.update(architectures=["LlamaForCausalLM", *c["architectures"]]))),
    Kind("fp8-static-blocks", 16, "faulty", "has blocks with dynamic activations alone", FP8,
         quantization(activation_scheme="static")),
    Kind("fp8-block-size-unsaid", 16, "faulty", "has no parameter weight_scale_inv without blocks", FP8,
         quantization(weight_block_size=None)),
    Kind("auto-round-three-bits", 16, "faulty", "has three bits with Humming alone, whose words are others",
         ROUND, quantization(bits=3)),
    Kind("auto-round-asymmetric", 16, "faulty", "knows symmetric ones alone", ROUND, quantization(sym=False)),
)  # fmt: skip
ALARMS = (
    Kind("g-idx-int64", 17, "serves", "drops every g_idx unread from 0.30 on",
         GPTQ, cast(".g_idx", torch.int64)),
    Kind("gptq-scales-fp32", 17, "serves", _SCALES_LATE, GPTQ, cast(".scales", torch.float32)),
    Kind("qweight-int64", 17, "serves", "casts the words to int32", GPTQ, cast(".qweight", torch.int64)),
    Kind("sym-as-integer", 17, "serves", "1 and True are the same key", GPTQ, quantization(sym=1)),
    Kind("gptq-no-qzeros", 17, "serves", "has kernels for symmetric GPTQ that read none", GPTQ,
         tensors(lambda t: [t.pop(name) for name in list(t) if name.endswith(".qzeros")])),
)  # fmt: skip
TO_MEND: tuple[Kind, ...] = ()
# Suspects of which checker and vLLM think alike today; they have to go on doing so.
AGREED: tuple[Kind, ...] = (
    *NAMES, *COUNT, *TIED, *ZERO, *PLACES, *METHODS, *GROUPS, *CLASSES, *PREFIXES, *DEFAULTS, *FILES, *VALUES,
    *RULES, *ALARMS,
    Kind("mtp-count-0", 2, "faulty", "divides by zero", Made(count="text-0")),
    Kind("mtp-count-absent-no-head", 2, "faulty", "leaves the draft unwritten",
         Made(count="absent", head="absent", format="gptq")),
    Kind("mtp-count-2-one-stored", 2, "faulty", "leaves the second layer unwritten",
         Made(text={"mtp_num_hidden_layers": 2}, format="gptq")),
    Kind("zero-points", 4, "serves", "loads them", Made(format="packed", zero=(True, True))),
    Kind("packed-small", 5, "serves", "builds in_proj_ba packed", Made(format="packed", packed=SMALL)),
    Kind("awq-small", 5, "serves", "builds in_proj_ba packed", Made(format="awq", packed=SMALL)),
    Kind("packed-head-by-pattern", 5, "serves", "builds lm_head packed, in target and draft",
         Made(format="packed", packed=HEAD), group_zero(targets=["Linear", "re:.*lm_head"])),
    Kind("method-in-capitals", 6, "serves", "lowers the name", GPTQ, quantization(quant_method="GPTQ")),
    Kind("name-match-first", 7, "faulty", "prefers a name", PACKED, _groups(down=8, Linear=4)),
    Kind("mixed-precision", 7, "serves", "reads the format of each group", PACKED, _mixed),
    *(
        Kind(f"head-under-{where.removesuffix('.mtp')}-{form}", 10, "faulty", "skips or refuses the names",
             Made(head=where, format=form))
        for where in _HEADS for form in _FORMS
    ),
    Kind("text-class-nested-config", 8, "serves", "loads the text model",
         Made(architecture="Qwen3_5ForCausalLM"), tensors(_no_vision)),
    Kind("head-in-subfolder", 10, "faulty", "looks into no subfolder", Made(head="subfolder", format="gptq")),
    Kind("absent-interval", 11, "serves", "has layer_types",
         Made(absent=frozenset({"full_attention_interval"}))),
    Kind("quantize-config-alone", 12, "faulty", "builds everything dense", GPTQ, _alone),
    Kind("folder-called-safetensors-indexed", 15, "serves", "goes by the index", GPTQ,
         lambda folder: (folder / "x.safetensors").mkdir()),
    Kind("bits-as-text", 16, "faulty", "divides by text", GPTQ, quantization(bits="4")),
    Kind("group-size-as-float", 16, "faulty", "takes 32.0 for a size",
         GPTQ, quantization(group_size=float(GROUP))),
    Kind("other-architecture-second", 16, "serves", "takes the first that it knows", BF16,
         config(lambda c: c["architectures"].append("LlamaForCausalLM"))),
    Kind("packed-scales-fp32", 17, "serves", _SCALES_LATE, PACKED, cast(".weight_scale", torch.float32)),
    Kind("packed-words-int64", 17, "serves", "casts the words to int32", PACKED,
         cast(".weight_packed", torch.int64)),
    Kind("awq-words-int64", 17, "serves", "casts the words to int32", AWQ, cast(".qweight", torch.int64)),
    Kind("awq-scales-fp32", 17, "serves", _SCALES_LATE, AWQ, cast(".scales", torch.float32)),
    Kind("gptq-no-g-idx", 17, "serves", "reads none", GPTQ,
         tensors(lambda t: [t.pop(name) for name in list(t) if name.endswith(".g_idx")])),
)  # fmt: skip
