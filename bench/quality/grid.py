"""The experiments: what is quantized how, on which calibration text. Pure data; `experiments.py` runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

LANGUAGES = ("de", "fr", "es", "ja", "zh", "ru", "pl")
CODE = ("python", "c", "cpp", "go", "rust", "java")
ENGLISH = ("chat", "en")
EVERYTHING = (*ENGLISH, *LANGUAGES, *CODE)

W4 = {"bits": 4, "group_size": 128, "sym": True}
NATURAL = {**W4, "desc_act": False, "act_group_aware": False, "damp_percent": 0.01}
STATIC = {**W4, "desc_act": True, "static_groups": True, "damp_percent": 0.01}
GROUP_AWARE = {**W4, "desc_act": False, "act_group_aware": True, "damp_percent": 0.05}
SEARCHED = {**STATIC, "mse": 2.4}
CONTROL = "static"
_LAYER = r"^(?:model\.language_model|language_model\.model|model)\.layers\.\d+\."


@dataclass(frozen=True, slots=True)
class Text:
    """Calibration: domains with their weights, rows, tokens a row, seed, packing."""

    domains: Mapping[str, float]
    samples: int = 256
    length: int = 512
    seed: int = 0
    pack: bool = True

    @classmethod
    def of(cls, *domains: str, **settings: Any) -> Text:
        """All domains alike."""
        return cls(dict.fromkeys(domains, 1.0), **settings)


# A third each to English, code and other languages, as a mix for a general model would have it.
MIX = Text({**dict.fromkeys(ENGLISH, 3.0), **dict.fromkeys(CODE, 1.0), **dict.fromkeys(LANGUAGES, 6 / 7)})


@dataclass(frozen=True, slots=True)
class Experiment:
    """One quantized model.

    Attributes:
        name: unique; group: which question it answers.
        settings: keyword arguments of gptqmodel's ``QuantizeConfig``; None for round-to-nearest of every linear.
        text: what it is calibrated on.
        foem, gptaq: keyword arguments of gptqmodel's extensions.
        rtn: arguments of ``quantize_rtn`` where ``settings`` is None.
        overlay: changes on top, by pattern of tensor name: ``w4``, ``w8`` (searched RTN, g128), ``w4-plain``,
            ``fp8`` (e4m3, one scale per output channel).
        base: experiment whose checkpoint the overlay lies on, instead of a quantization of its own.
        against: experiment that it is compared with, where that is neither its base nor `static`.
    """

    name: str
    group: str
    settings: Mapping[str, Any] | None = None
    text: Text = MIX
    foem: Mapping[str, float] | None = None
    gptaq: Mapping[str, float] | None = None
    rtn: Mapping[str, Any] | None = None
    overlay: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None
    against: str | None = None

    @property
    def control(self) -> str:
        """The experiment that this one is compared with."""
        return self.against or self.base or CONTROL


def _methods() -> list[Experiment]:
    group = "method"
    return [
        Experiment("rtn", group, rtn={"bits": 4, "search": False}),
        Experiment("rtn-search", group, rtn={"bits": 4, "search": True}),
        Experiment(
            "gptq-natural", group, {**W4, "desc_act": False, "act_group_aware": False, "damp_percent": 0.01}
        ),
        Experiment("reference", group, {**W4, "desc_act": True, "damp_percent": 0.01}),
        Experiment("static", group, STATIC),
        Experiment("static-damp-05", group, {**STATIC, "damp_percent": 0.05}),
        Experiment("static-damp-10", group, {**STATIC, "damp_percent": 0.1}),
        Experiment("static-mse", group, SEARCHED),
        Experiment("static-mse-2", group, {**STATIC, "mse": 2.0}),
        Experiment("group-aware", group, GROUP_AWARE),
        Experiment("group-aware-damp-01", group, {**GROUP_AWARE, "damp_percent": 0.01}),
        Experiment("group-aware-mse", group, {**GROUP_AWARE, "mse": 2.4}),
        Experiment("static-gptaq", group, STATIC, gptaq={"alpha": 0.25}),
        Experiment("static-foem", group, STATIC, foem={"alpha": 0.0, "beta": 0.2}),
        Experiment("static-foem-gptaq", group, STATIC, foem={"alpha": 0.25, "beta": 0.2}),
        Experiment("group-aware-foem", group, GROUP_AWARE, foem={"alpha": 0.0, "beta": 0.2}),
        Experiment("static-g64", group, {**STATIC, "group_size": 64}),
        Experiment("static-g32", group, {**STATIC, "group_size": 32}),
    ]


def _seeds() -> list[Experiment]:
    found = []
    for seed in (1, 2, 3):
        text = replace(MIX, seed=seed)
        found.append(Experiment(f"static-seed-{seed}", "seed", STATIC, text))
        found.append(Experiment(f"static-mse-seed-{seed}", "seed", SEARCHED, text))
        found.append(Experiment(f"group-aware-seed-{seed}", "seed", GROUP_AWARE, text))
    return found


def _texts() -> list[Experiment]:
    texts = {
        "chat-only": Text.of("chat"),
        "english-only": Text.of(*ENGLISH),
        "code-only": Text.of(*CODE),
        "languages-only": Text.of(*LANGUAGES),
        "even-mix": Text.of(*EVERYTHING),
        "mix-without-code": Text.of(*ENGLISH, *LANGUAGES),
        "mix-without-languages": Text.of(*ENGLISH, *CODE),
        "mix-unpacked": replace(MIX, pack=False),
        "mix-1024x128": replace(MIX, samples=1024, length=128),
        "mix-64x2048": replace(MIX, samples=64, length=2048),
    }
    return [Experiment(f"static-{name}", "text", STATIC, text) for name, text in texts.items()]


def _samples() -> list[Experiment]:
    return [
        Experiment(f"static-{samples}-rows", "samples", STATIC, replace(MIX, samples=samples))
        for samples in (4, 16, 64, 128, 512, 1024)
    ]


def _searched() -> list[Experiment]:
    """Smaller groups on top of the scale search, which leads the methods."""
    return [
        Experiment(f"mse-g{size}", "searched", {**SEARCHED, "group_size": size}, against="static-mse")
        for size in (64, 32)
    ]


def _small() -> list[Experiment]:
    """GPTAQ, a row at a time, on few enough rows for a CPU; each against the same without it."""
    text, quarter = replace(MIX, samples=64), {"alpha": 0.25}
    return [
        Experiment("small-static", "small", STATIC, text),
        Experiment("small-gptaq", "small", STATIC, text, gptaq=quarter, against="small-static"),
        Experiment("small-mse", "small", SEARCHED, text, against="small-static"),
        Experiment("small-mse-gptaq", "small", SEARCHED, text, gptaq=quarter, against="small-mse"),
    ]


def _modules() -> list[Experiment]:
    def static_with(name: str, pattern: str, bits: int) -> Experiment:
        rule = {"-:" + _LAYER + pattern: {}} if bits == 16 else {"+:" + _LAYER + pattern: {"bits": bits}}
        return Experiment(f"static-{name}", "modules", {**STATIC, "dynamic": rule})

    gdn_in = r"linear_attn\.(?:in_proj_qkv|in_proj_qkvz|in_proj_z)$"
    gdn_out = r"linear_attn\.out_proj$"
    gdn = r"linear_attn\.(?:in_proj_qkv|in_proj_qkvz|in_proj_z|out_proj)$"
    attention = r"self_attn\.(?:q_proj|k_proj|v_proj|qkv_proj|o_proj)$"
    found = [
        static_with("gdn-out-8", gdn_out, 8),
        static_with("gdn-out-16", gdn_out, 16),
        static_with("gdn-in-8", gdn_in, 8),
        static_with("gdn-in-16", gdn_in, 16),
        static_with("gdn-8", gdn, 8),
        static_with("gdn-16", gdn, 16),
        static_with("attention-8", attention, 8),
        static_with("attention-16", attention, 16),
        static_with("down-8", r"mlp\.down_proj$", 8),
        static_with("gate-up-8", r"mlp\.(?:gate_proj|up_proj|gate_up_proj)$", 8),
        static_with("mlp-8", r"mlp\.(?:gate_proj|up_proj|gate_up_proj|down_proj)$", 8),
        Experiment("all-8", "modules", {**STATIC, "bits": 8}),
    ]
    gates = r".*\.linear_attn\.in_proj_[ab]\.weight$"
    return [
        *found,
        Experiment("static-ab-w4", "modules", base="static", overlay={gates: "w4"}),
        Experiment("static-ab-w8", "modules", base="static", overlay={gates: "w8"}),
    ]


_MTP_LINEARS = r"mtp\.(?:fc|layers\.0\.(?:self_attn\.[qkvo]|mlp\.(?:gate|up|down))_proj)\.weight$"


def _recipes() -> list[Experiment]:
    """What the figures above led to, put together."""
    attention = r"self_attn\.(?:q_proj|k_proj|v_proj|qkv_proj|o_proj)$"
    out, gdn = r"linear_attn\.out_proj$", r"linear_attn\.(?:in_proj_qkv|in_proj_qkvz|in_proj_z|out_proj)$"

    def with_8(name: str, *patterns: str, against: str | None = None) -> Experiment:
        rules = {"+:" + _LAYER + pattern: {"bits": 8} for pattern in patterns}
        return Experiment(name, "recipe", {**SEARCHED, "dynamic": rules}, against=against)

    return [
        with_8("mse-mixers-8", gdn, attention, against="static-mse"),
        with_8("mse-out-attention-8", out, attention),
        Experiment("mse-chat-only", "recipe", SEARCHED, Text.of("chat")),
        Experiment("mse-even-mix", "recipe", SEARCHED, Text.of(*EVERYTHING), against="static-mse"),
        Experiment(
            "mse-compact",
            "recipe",
            base="static-mse",
            overlay={r"lm_head\.weight$": "w8", _MTP_LINEARS: "w8"},
        ),
    ]


def _heads() -> list[Experiment]:
    linears = _MTP_LINEARS
    inner = linears.replace("fc|", "")
    return [
        Experiment("mtp-fp8", "mtp", base="static", overlay={linears: "fp8"}),
        Experiment("mtp-w8", "mtp", base="static", overlay={linears: "w8"}),
        Experiment("mtp-w4", "mtp", base="static", overlay={linears: "w4"}),
        Experiment("mtp-w4-plain", "mtp", base="static", overlay={linears: "w4-plain"}),
        Experiment("mtp-w4-but-fc", "mtp", base="static", overlay={inner: "w4"}),
        Experiment("lm-head-w8", "lm_head", base="static", overlay={r"lm_head\.weight$": "w8"}),
        Experiment("lm-head-w4", "lm_head", base="static", overlay={r"lm_head\.weight$": "w4"}),
        Experiment("lm-head-fp8", "lm_head", base="static", overlay={r"lm_head\.weight$": "fp8"}),
        Experiment(
            "lm-head-w8-mtp-w4", "lm_head", base="static", overlay={r"lm_head\.weight$": "w8", linears: "w4"}
        ),
    ]


EXPERIMENTS = (
    *_methods(),
    *_seeds(),
    *_texts(),
    *_samples(),
    *_searched(),
    *_small(),
    *_modules(),
    *_heads(),
    *_recipes(),
)
BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
