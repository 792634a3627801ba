"""What a checkpoint of a family must hold, independent of any one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that is stored in floating point: full name and shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """A bias-free linear module; its dense weight is ``[out_features, in_features]``."""

    name: str
    out_features: int
    in_features: int

    @property
    def weight(self) -> TensorSpec:
        return TensorSpec(f"{self.name}.weight", (self.out_features, self.in_features))


@dataclass(frozen=True, slots=True)
class FusedModule:
    """Modules that vLLM loads into one parameter, in shard order. They must share one ``g_idx``."""

    name: str
    shards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """All tensors of one checkpoint of a family, by what happens to them.

    ``quantized``: linears that become qweight/scales/qzeros/g_idx. ``plain``: text
    tensors left in BF16. ``vision`` and ``mtp``: likewise BF16, in towers of their
    own. ``fused`` lists only modules among ``quantized``.
    """

    family: str
    layers_prefix: str
    quantized: tuple[LinearSpec, ...]
    plain: tuple[TensorSpec, ...]
    vision: tuple[TensorSpec, ...]
    mtp: tuple[TensorSpec, ...]
    fused: tuple[FusedModule, ...]

    @property
    def dense(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the unquantized original."""
        return (*(linear.weight for linear in self.quantized), *self.plain, *self.vision, *self.mtp)

    @property
    def output_head(self) -> LinearSpec | None:
        """The output head as a linear; None where it is the embedding (tied)."""
        head = next((spec for spec in self.plain if spec.name == "lm_head.weight"), None)
        return None if head is None else LinearSpec("lm_head", *head.shape)

    @property
    def mtp_linears(self) -> list[LinearSpec]:
        """The linears of the MTP head, ``mtp.fc`` among them."""
        matrices = [spec for spec in self.mtp if len(spec.shape) == 2]
        return [LinearSpec(spec.name.removesuffix(".weight"), *spec.shape) for spec in matrices]

    def renamed(self, old: str, new: str) -> TensorLayout:
        """The layout with ``new`` in place of the prefix ``old`` in every name."""

        def name(text: str) -> str:
            return new + text.removeprefix(old) if text.startswith(old) else text

        def tensors(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(name(spec.name), spec.shape) for spec in specs)

        return replace(
            self,
            layers_prefix=name(self.layers_prefix),
            quantized=tuple(LinearSpec(name(q.name), q.out_features, q.in_features) for q in self.quantized),
            plain=tensors(self.plain),
            vision=tensors(self.vision),
            fused=tuple(FusedModule(name(f.name), tuple(map(name, f.shards))) for f in self.fused),
        )


@dataclass(frozen=True, slots=True)
class Family:
    """A family of architectures: ``matches`` looks at a parsed ``config.json``, ``layout`` derives the tensors.

    ``mtp_architectures`` are vLLM's names for the draft model classes.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    mtp_architectures: tuple[str, ...]
    layout: Callable[[Mapping[str, Any]], TensorLayout]

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in self.model_types
