"""Modules that vLLM builds, and the names by which it looks each up in a ``quantization_config``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# What vLLM loads as one, with its parts in the checkpoint (`packed_modules_mapping` of its classes).
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
_FUSED_BY_PART = {part: whole for whole, parts in FUSED.items() for part in (*parts, whole)}
# vLLM renames what a config lists as it renames tensors (`hf_to_vllm_mapper`); its draft renames nothing.
_MULTIMODAL = (
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
)
_TEXT_ONLY = (("model.language_model.", "model."),)
_CLASSES = {
    "qkv_proj": "QKVParallelLinear",
    "qkv": "QKVParallelLinear",
    "gate_up_proj": "MergedColumnParallelLinear",
    "in_proj_qkvz": "MergedColumnParallelLinear",
    "in_proj_ba": "MergedColumnParallelLinear",
    "fc": "ColumnParallelLinear",
    "linear_fc1": "ColumnParallelLinear",
    "lm_head": "ParallelLMHead",
}


@dataclass(frozen=True, slots=True)
class Module:
    """A module that vLLM builds.

    Attributes:
        name: vLLM's name for it.
        stored: names of its parts in the checkpoint; its own where it has no parts.
        parts: vLLM's names for its parts; empty where the checkpoint stores it as one.
        vllm_class: vLLM's class.
        renames: prefixes that vLLM replaces in the names that a config lists.
        fused_patterns: whether patterns of compressed-tensors' ``ignore`` are tried on the name of a fused module,
            as from vLLM 0.30 on; before, it counts only as it stands.
    """

    name: str
    stored: tuple[str, ...]
    parts: tuple[str, ...]
    vllm_class: str
    renames: tuple[tuple[str, str], ...]
    fused_patterns: bool = True

    @property
    def output_head(self) -> bool:
        """Whether it is the output head, which is no linear to vLLM."""
        return self.vllm_class == "ParallelLMHead"

    def renamed(self, listed: str) -> str:
        """Return a name that a config lists as vLLM has it after renaming."""
        for old, new in self.renames:
            if listed.startswith(old):
                listed = new + listed.removeprefix(old)
        return listed


@dataclass(frozen=True, slots=True)
class Built:
    """What vLLM builds for a module.

    Attributes:
        quantized: whether it is packed; None where that follows from what is stored.
        settings: the module's own settings, in the format's terms.
        problem: why vLLM cannot build it.
    """

    quantized: bool | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def suits(self, *, quantized: bool) -> bool:
        """Whether a part that is stored quantized, or plain, can be loaded into it."""
        return self.problem is None and self.quantized in {None, quantized}


def module_of(name: str, *, text_only: bool = False, draft: bool | None = None) -> Module:
    """Return the module that vLLM loads ``name`` of the checkpoint into, fused or alone.

    Args:
        name: a module of the checkpoint, or what vLLM fuses several to under the checkpoint's prefix.
        text_only: whether vLLM's class is the text-only one.
        draft: whether the draft is meant; by default for ``mtp.*``.
    """
    draft = name.startswith("mtp.") if draft is None else draft
    renames = () if draft else _TEXT_ONLY if text_only else _MULTIMODAL
    parent, dot, leaf = name.rpartition(".")
    whole = _FUSED_BY_PART.get(leaf, leaf)
    parts = tuple(f"{parent}{dot}{part}" for part in FUSED.get(whole, ()))
    kind = _CLASSES.get(whole, "RowParallelLinear")
    here = Module(f"{parent}{dot}{whole}", parts or (name,), parts, kind, renames)
    if here.output_head:
        return Module(
            "lm_head" if draft or text_only else "language_model.lm_head", (name,), (), kind, renames
        )
    return Module(here.renamed(here.name), here.stored, tuple(map(here.renamed, parts)), kind, renames)


def listed(module: Module, is_listed: Callable[[str], bool]) -> bool | None:
    """Whether a list has a module: asked by its own name first, then by its parts; None if by some of them."""
    if is_listed(module.name):
        return True
    return all_or_none(module.parts, is_listed) if module.parts else False


def all_or_none(names: tuple[str, ...], is_listed: Callable[[str], bool]) -> bool | None:
    """Whether a list has all of ``names`` (True) or none (False); None in between."""
    answers = {is_listed(name) for name in names}
    return answers.pop() if len(answers) == 1 else None


def parts_differ(module: Module, where: str) -> Built:
    """Return what comes of a config that has some parts of a module packed, and others not."""
    parts = ", ".join(name.rpartition(".")[2] for name in module.stored)
    return Built(None, problem=f"{where} has some but not all of {parts}, which vLLM loads as one")
