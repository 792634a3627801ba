"""What every format answers, and helpers for reading configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.checkpoint.layout import LinearSpec

from ._modules import Built, Module, module_of

FLOAT_DTYPES = frozenset({"BF16", "F16", "F32"})
# vLLM casts packed words to int32, whatever whole numbers they come in.
WORDS = frozenset({"I32", "I64"})
Tensors = Mapping[str, TensorInfo]
Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """How one linear is stored: ``form`` names the way, ``parts`` holds its tensors by suffix."""

    form: str
    parts: Mapping[str, TensorInfo]

    @property
    def quantized(self) -> bool:
        """Whether it is anything but a plain weight."""
        return self.form != "dense"


# Dtypes allowed and shape, by suffix.
Expected = dict[str, tuple[frozenset[str], tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Format:
    """A quantization format.

    Attributes:
        name: for messages.
        methods: values of ``quant_method``, in lower case, that declare it.
        forms: values of :attr:`Stored.form` that vLLM loads for it.
        suffixes: suffixes of all tensors a quantized linear may have, the format's own ones first.
        stored: recognises a linear stored in this format; None for any other.
        builds: what vLLM builds for a module under a config.
        shapes: dtypes and shapes of a linear's tensors by suffix, in a module so built; None where they are not
            known.
        exclude_mtp: returns a copy of the config that leaves the named modules of the MTP head unquantized.
        unread: suffixes of expected tensors that no kernel needs.
        misplaced: suffixes of tensors for which vLLM has no place unless they are expected.
    """

    name: str
    methods: frozenset[str]
    forms: frozenset[str]
    suffixes: tuple[str, ...]
    stored: Callable[[Tensors, str], Stored | None]
    builds: Callable[[Config, Module], Built]
    shapes: Callable[[Config, Built, LinearSpec], Expected | None]
    exclude_mtp: Callable[[Config, Sequence[str]], dict[str, Any]]
    unread: frozenset[str] = frozenset()
    misplaced: frozenset[str] = frozenset()

    def declares(self, config: Config, module: str) -> bool | None:
        """Whether the config has a module of the checkpoint quantized; None where it leaves that open."""
        return self.builds(config, module_of(module)).quantized

    def expected(self, config: Config, linear: LinearSpec, module: Module | None = None) -> Expected | None:
        """Return dtypes and shapes of a linear's tensors by suffix, as vLLM has them; None if unknown."""
        return self.shapes(config, self.builds(config, module or module_of(linear.name)), linear)


def vllm_name(module: str) -> str:
    """Translate a module's name in the checkpoint to that in vLLM's multimodal class; the draft's stay the same."""
    for ours, theirs in (("model.language_model.", "language_model.model."), ("model.visual.", "visual.")):
        if module.startswith(ours):
            return theirs + module.removeprefix(ours)
    return module


def find_parts(tensors: Tensors, module: str, suffixes: tuple[str, ...]) -> dict[str, TensorInfo]:
    """Return those tensors of ``module`` that exist, by suffix."""
    return {s: tensors[f"{module}.{s}"] for s in suffixes if f"{module}.{s}" in tensors}


def dense_or_none(tensors: Tensors, module: str) -> Stored | None:
    """Return the module as a plain ``weight`` of whatever dtype; None if it has none."""
    info = tensors.get(f"{module}.weight")
    return None if info is None else Stored("dense", {"weight": info})


def group_count(in_features: int, group_size: int) -> int:
    """Number of quantization groups along the input; 1 for a group size of -1."""
    return 1 if group_size <= 0 else -(-in_features // group_size)


def integer(config: Config, key: str, default: int) -> int:
    """Return a whole number from a config; ``default`` in place of anything else."""
    value = config.get(key, default)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def strings(value: Any) -> list[str]:
    """Return the strings in a list and in the lists within it; none for anything else."""
    if not isinstance(value, (list, tuple)):
        return []
    out: list[str] = []
    for item in value:
        out += strings(item) if isinstance(item, (list, tuple)) else [item] if isinstance(item, str) else []
    return out
