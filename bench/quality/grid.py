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


_HEAD = r"lm_head\.weight$"
_MTP = r"mtp\.(?:fc|layers\.0\.(?:self_attn\.[qkvo]|mlp\.(?:gate|up|down))_proj)\.weight$"
_GDN_IN = r"linear_attn\.(?:in_proj_qkv|in_proj_qkvz|in_proj_z)$"
_GDN_OUT = r"linear_attn\.out_proj$"
_GDN = r"linear_attn\.(?:in_proj_qkv|in_proj_qkvz|in_proj_z|out_proj)$"
_ATTENTION = r"self_attn\.(?:q_proj|k_proj|v_proj|qkv_proj|o_proj)$"


def _methods() -> list[Experiment]:
    settings: dict[str, dict[str, Any]] = {
        "gptq-natural": {**W4, "desc_act": False, "act_group_aware": False, "damp_percent": 0.01},
        "reference": {**W4, "desc_act": True, "damp_percent": 0.01},
        "static": STATIC,
        "static-damp-05": {**STATIC, "damp_percent": 0.05},
        "static-damp-10": {**STATIC, "damp_percent": 0.1},
        "static-mse": SEARCHED,
        "static-mse-2": {**STATIC, "mse": 2.0},
        "group-aware": GROUP_AWARE,
        "group-aware-damp-01": {**GROUP_AWARE, "damp_percent": 0.01},
        "group-aware-mse": {**GROUP_AWARE, "mse": 2.4},
        "static-g64": {**STATIC, "group_size": 64},
        "static-g32": {**STATIC, "group_size": 32},
    }
    foem = {"alpha": 0.0, "beta": 0.2}
    return [
        Experiment("rtn", "method", rtn={"bits": 4, "search": False}),
        Experiment("rtn-search", "method", rtn={"bits": 4, "search": True}),
        *(Experiment(name, "method", of) for name, of in settings.items()),
        Experiment("static-foem", "method", STATIC, foem=foem),
        Experiment("group-aware-foem", "method", GROUP_AWARE, foem=foem),
    ]


def _seeds() -> list[Experiment]:
    methods = {"static": STATIC, "static-mse": SEARCHED, "group-aware": GROUP_AWARE}
    return [
        Experiment(f"{name}-seed-{seed}", "seed", settings, replace(MIX, seed=seed))
        for seed in (1, 2, 3)
        for name, settings in methods.items()
    ]


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
    return [
        *(Experiment(f"static-{name}", "text", STATIC, text) for name, text in texts.items()),
        *(
            Experiment(f"static-{rows}-rows", "samples", STATIC, replace(MIX, samples=rows))
            for rows in (4, 16, 64, 1024)
        ),
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
    """Kinds of module in other bits: 8, or 16 for BF16."""
    kinds = {
        "gdn-out": (_GDN_OUT, (8, 16)),
        "gdn-in": (_GDN_IN, (8, 16)),
        "gdn": (_GDN, (8, 16)),
        "attention": (_ATTENTION, (8, 16)),
        "down": (r"mlp\.down_proj$", (8,)),
        "gate-up": (r"mlp\.(?:gate_proj|up_proj|gate_up_proj)$", (8,)),
        "mlp": (r"mlp\.(?:gate_proj|up_proj|gate_up_proj|down_proj)$", (8,)),
    }
    gates = r".*\.linear_attn\.in_proj_[ab]\.weight$"
    return [
        *(
            Experiment(f"static-{name}-{bits}", "modules", {**STATIC, "dynamic": _rules(bits, pattern)})
            for name, (pattern, several) in kinds.items()
            for bits in several
        ),
        Experiment("static-ab-w4", "modules", base="static", overlay={gates: "w4"}),
        Experiment("static-ab-w8", "modules", base="static", overlay={gates: "w8"}),
    ]


def _rules(bits: int, *patterns: str) -> dict[str, dict[str, int]]:
    """gptqmodel's ``dynamic``, by pattern of a module's name within its layer."""
    return {
        ("-:" if bits == 16 else "+:") + _LAYER + p: {} if bits == 16 else {"bits": bits} for p in patterns
    }


def _heads() -> list[Experiment]:
    inner = _MTP.replace("fc|", "")
    overlays = {
        "mtp-fp8": {_MTP: "fp8"},
        "mtp-w8": {_MTP: "w8"},
        "mtp-w4": {_MTP: "w4"},
        "mtp-w4-plain": {_MTP: "w4-plain"},
        "mtp-w4-but-fc": {inner: "w4"},
        "lm-head-w8": {_HEAD: "w8"},
        "lm-head-w4": {_HEAD: "w4"},
        "lm-head-fp8": {_HEAD: "fp8"},
        "lm-head-w8-mtp-w4": {_HEAD: "w8", _MTP: "w4"},
    }
    return [Experiment(name, "head", base="static", overlay=of) for name, of in overlays.items()]


def _recipes() -> list[Experiment]:
    """What the figures above led to, put together."""
    careful = {**SEARCHED, "dynamic": _rules(8, _GDN_OUT, _ATTENTION)}
    return [
        Experiment("mse-out-attention-8", "recipe", careful),
        Experiment("mse-chat-only", "recipe", SEARCHED, Text.of("chat")),
        Experiment("mse-compact", "recipe", base="static-mse", overlay={_HEAD: "w8", _MTP: "w8"}),
    ]


EXPERIMENTS = (*_methods(), *_seeds(), *_texts(), *_small(), *_modules(), *_heads(), *_recipes())
BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
