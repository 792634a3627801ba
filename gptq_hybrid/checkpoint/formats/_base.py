"""What a format is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.checkpoint.layout import LinearSpec

FLOAT_DTYPES = frozenset({"BF16", "F16", "F32"})
Tensors = Mapping[str, TensorInfo]
Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """One linear as found: ``form`` names how, ``parts`` its tensors by suffix."""

    form: str
    parts: Mapping[str, TensorInfo]

    @property
    def quantized(self) -> bool:
        return self.form != "dense"


# Dtypes allowed and shape, by suffix.
Expected = dict[str, tuple[frozenset[str], tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Format:
    """A quantization format.

    Attributes:
        name: what to call it in messages.
        methods: values of ``quant_method`` (lower case) that mean it.
        forms: values of :attr:`Stored.form` that vLLM loads for it.
        suffixes: suffixes of every tensor a quantized linear may have, its own ones first.
        stored: how a linear is stored, if it is in this format.
        declares: whether the config calls for a module to be quantized; None where the config leaves that
            to what is stored.
        expected: dtypes and shapes of the required tensors, or None where they are not known.
        exclude_mtp: a copy of the config that leaves the named modules of the MTP head unquantized.
    """

    name: str
    methods: frozenset[str]
    forms: frozenset[str]
    suffixes: tuple[str, ...]
    stored: Callable[[Tensors, str], Stored | None]
    declares: Callable[[Config, str], bool | None]
    expected: Callable[[Config, LinearSpec], Expected | None]
    exclude_mtp: Callable[[Config, Sequence[str]], dict[str, Any]]


def vllm_name(module: str) -> str:
    """What vLLM's multimodal class calls a module of the checkpoint; the draft's keep their names."""
    for ours, theirs in (("model.language_model.", "language_model.model."), ("model.visual.", "visual.")):
        if module.startswith(ours):
            return theirs + module.removeprefix(ours)
    return module


def parts_of(tensors: Tensors, module: str, suffixes: tuple[str, ...]) -> dict[str, TensorInfo]:
    """The tensors of ``module`` that are there, by suffix."""
    return {s: tensors[f"{module}.{s}"] for s in suffixes if f"{module}.{s}" in tensors}


def dense_or_none(tensors: Tensors, module: str) -> Stored | None:
    """The module as a plain ``weight``, whatever its dtype."""
    info = tensors.get(f"{module}.weight")
    return None if info is None else Stored("dense", {"weight": info})


def groups_of(in_features: int, group_size: int) -> int:
    """Number of quantization groups along the input; one for -1."""
    return 1 if group_size <= 0 else -(-in_features // group_size)


def integer(config: Config, key: str, default: int) -> int:
    """A whole number of a config, or ``default`` where there is something else."""
    value = config.get(key, default)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def strings(value: Any) -> list[str]:
    """The strings of a list, one level of nesting flattened; empty for anything else."""
    if not isinstance(value, (list, tuple)):
        return []
    out: list[str] = []
    for item in value:
        out += strings(item) if isinstance(item, (list, tuple)) else [item] if isinstance(item, str) else []
    return out
