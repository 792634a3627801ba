"""The tensors that a checkpoint of a family must hold, whatever files they are in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

# The two prefixes that the text model's tensors have in published checkpoints: multimodal and text-only.
_PREFIXES = ("model.language_model.", "model.")


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
        """The dense weight."""
        return TensorSpec(f"{self.name}.weight", (self.out_features, self.in_features))


@dataclass(frozen=True, slots=True)
class FusedModule:
    """Modules that vLLM loads into one parameter, in shard order. They must share one ``g_idx``."""

    name: str
    shards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """All tensors of one checkpoint of a family.

    Attributes:
        family: name of the family.
        layers_prefix: what the names of the layers begin with, such as ``model.layers``.
        quantized: linears that become qweight, scales, qzeros and g_idx.
        plain: tensors of the text model that stay in BF16.
        vision: tensors of the vision tower, in BF16; empty without one.
        mtp: tensors of the MTP head, in BF16; empty without one.
        fused: what vLLM loads as one, among ``quantized``.
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

    def with_output_head(self) -> TensorLayout:
        """Return the layout of a model whose output head is not its embedding, though the config ties the two."""
        if self.output_head is not None:
            return self
        embedding = next((spec for spec in self.plain if spec.name.endswith("embed_tokens.weight")), None)
        head = () if embedding is None else (TensorSpec("lm_head.weight", embedding.shape),)
        return replace(self, plain=(*self.plain, *head))

    @property
    def mtp_linears(self) -> list[LinearSpec]:
        """The linears of the MTP head, ``mtp.fc`` among them."""
        matrices = [spec for spec in self.mtp if len(spec.shape) == 2]
        return [LinearSpec(spec.name.removesuffix(".weight"), *spec.shape) for spec in matrices]

    def as_named_in(self, names: Collection[str]) -> TensorLayout:
        """Return the layout under the prefix of the text model that ``names`` use: this one, or the other in use.

        Multimodal checkpoints call it ``model.language_model``, text-only ones ``model``.
        """
        own = self.layers_prefix.removesuffix("layers")
        multimodal, text_only = _PREFIXES
        other = text_only if own == multimodal else multimodal
        if any(name.startswith(f"{own}layers.") for name in names):
            return self
        return self.renamed(own, other) if any(name.startswith(f"{other}layers.") for name in names) else self

    def renamed(self, old: str, new: str) -> TensorLayout:
        """Return the layout with ``new`` in place of the prefix ``old`` in every name."""

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
    """A family of architectures.

    Attributes:
        name: for people.
        architectures: values of ``architectures`` in ``config.json`` that vLLM has a class for.
        model_types: values of ``model_type`` in ``config.json`` by which the family is recognised.
        mtp_architectures: vLLM's names for the classes of the draft model.
        layout: derives the tensors from a parsed ``config.json``; raises CheckpointError for a dimension that
            cannot be.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    mtp_architectures: tuple[str, ...]
    layout: Callable[[Mapping[str, Any]], TensorLayout]

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether a parsed ``config.json`` belongs to this family."""
        return config.get("model_type") in self.model_types
