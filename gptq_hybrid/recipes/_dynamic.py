"""Turn choices by module into gptqmodel's ``dynamic`` rules, in patterns that vLLM understands too.

gptqmodel looks a module up by the checkpoint's name (``model.language_model.layers.3.mlp.up_proj``). vLLM looks
it up by its own, and only once for modules it loads as one
(``language_model.model.layers.3.mlp.gate_up_proj``). Both take the first pattern that ``re.match`` accepts. The
MTP head's layers (``mtp.layers.0``) must not match by accident, so every pattern starts at the root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptq_hybrid.checkpoint import TensorLayout
from gptq_hybrid.checkpoint.formats import vllm_name
from gptq_hybrid.common.errors import HybridError

# Bits that vLLM's GPTQ kernels load; 16 leaves a module in BF16.
_CHOICES = (4, 8, 16)
# The text-only class's name for the layers, whatever the checkpoint calls them.
_TEXT_ONLY = "model.layers"


def dynamic_rules(
    layout: TensorLayout, choices: Mapping[str, int], *, bits: int = 4
) -> dict[str, dict[str, Any]]:
    """Make rules that give each module the bits chosen for it, one for each kind of module and number of bits.

    Args:
        layout: the checkpoint's (``gptq_hybrid.checkpoint.layout_for(config)``).
        choices: 4, 8 or 16 (BF16) by full module name, as in ``layout.quantized``.
        bits: what modules without a choice get. Modules for which the same is chosen need no rule.

    Returns:
        ``dynamic`` for gptqmodel's ``QuantizeConfig``.

    Raises:
        HybridError: a module that this model does not have, a number of bits that vLLM does not load, or
            different choices for modules that vLLM loads as one.
    """
    quantized = {linear.name for linear in layout.quantized}
    for module, chosen in choices.items():
        if module not in quantized:
            raise HybridError(
                f"{module!r} is not among the modules that are quantized",
                remedy=f"Names are like {layout.quantized[0].name}.",
            )
        if chosen not in _CHOICES:
            raise HybridError(f"{module}: {chosen!r} bits", remedy="Choose 4, 8, or 16 for BF16.")
    layers_with: dict[tuple[str, ...], set[int]] = {}
    chosen_for: dict[tuple[tuple[str, ...], int], set[int]] = {}
    for names in _loaded_as_one(layout):
        shards = {module: choices.get(module, bits) for module in names if module in quantized}
        if len(set(shards.values())) > 1:
            each = ", ".join(f"{module} {chosen}" for module, chosen in shards.items())
            raise HybridError(
                f"vLLM loads {names[-1]} as one, so its parts need the same bits: {each}",
                remedy="Choose the same for all of them.",
            )
        numbers, leaves = zip(*(_split(layout, module) for module in names), strict=True)
        kind = tuple(dict.fromkeys(leaves))
        layers_with.setdefault(kind, set()).add(numbers[0])
        chosen = next(iter(shards.values()))
        if chosen != bits:
            chosen_for.setdefault((kind, chosen), set()).add(numbers[0])
    return {
        ("-:" if chosen == 16 else "+:") + _pattern(layout, kind, layers, layers_with[kind]): (
            {} if chosen == 16 else {"bits": chosen}
        )
        for (kind, chosen), layers in chosen_for.items()
    }


def _loaded_as_one(layout: TensorLayout) -> list[tuple[str, ...]]:
    """Group modules as vLLM loads them: the shards and the fused name, or one module alone."""
    groups = {fused.shards[0]: (*fused.shards, fused.name) for fused in layout.fused}
    inner = {shard for fused in layout.fused for shard in fused.shards[1:]}
    return [
        groups.get(linear.name, (linear.name,)) for linear in layout.quantized if linear.name not in inner
    ]


def _split(layout: TensorLayout, module: str) -> tuple[int, str]:
    """Split a name into the layer's number and the name within the layer."""
    number, _, leaf = module.removeprefix(f"{layout.layers_prefix}.").partition(".")
    return int(number), leaf


def _pattern(layout: TensorLayout, kind: tuple[str, ...], layers: set[int], possible: set[int]) -> str:
    prefixes = dict.fromkeys((layout.layers_prefix, vllm_name(layout.layers_prefix), _TEXT_ONLY))
    roots = _any([prefix.removesuffix(".layers") for prefix in prefixes])
    numbers = r"\d+" if layers == possible else _any([str(number) for number in sorted(layers)])
    parent, leaves = kind[0].rpartition(".")[0], [leaf.rpartition(".")[2] for leaf in kind]
    return rf"^{roots}\.layers\.{numbers}\.{re.escape(parent)}\.{_any(sorted(leaves))}$"


def _any(words: list[str]) -> str:
    escaped = [re.escape(word) for word in words]
    return escaped[0] if len(escaped) == 1 else f"(?:{'|'.join(escaped)})"
