"""Which modules are worth more bits, within a budget of bytes."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptq_hybrid.checkpoint import LinearSpec, TensorLayout
from gptq_hybrid.checkpoint.formats.gptq import settings as module_settings
from gptq_hybrid.checkpoint.quantization import dynamic_rule
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.recipes import Recipe
from gptq_hybrid.recipes.sizes import packed_bytes, quantized_bytes

from ._precisions import STORED
from ._result import Module, Sensitivity

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[kmg]i?b|b?)", re.IGNORECASE)
DENSE = 16
_LADDER = (4, 8, DENSE)


@dataclass(frozen=True, slots=True)
class Choice:
    """The bits chosen for each linear, and what they cost and gain.

    Attributes:
        bits: 4, 8 or 16 (BF16) of every linear of the layers.
        raised: by unit name, the bits of units that get more than in the base recipe.
        budget: bytes that the files may grow by.
        extra_bytes: bytes that they do grow by; at most ``budget``.
        kld_before: sum of what modules cost by themselves with the base recipe.
        kld_after: the same with these bits.
    """

    bits: dict[str, int]
    raised: dict[str, int]
    budget: int
    extra_bytes: int
    kld_before: float
    kld_after: float


def budget_bytes(text: str, layout: TensorLayout, base: Recipe) -> int:
    """Parse ``500MB``, ``1.5GiB``, ``800000`` or ``3%`` (of the checkpoint that ``base`` makes) to bytes.

    Raises:
        HybridError: ``text`` is none of these.
    """
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise HybridError(
            f"--budget {text!r} is no size",
            remedy="Give a size such as 500MB, 1.5GiB, or 3% of the checkpoint.",
        )
    number, unit = float(match[1]), match[2].lower()
    if unit == "%":
        return int(number / 100 * quantized_bytes(layout, base.settings, base.packaging))
    return int(number * _UNITS[unit.removesuffix("b") if unit == "b" else unit])


def recipe_bits(settings: Mapping[str, Any], module: str) -> int:
    """Return the bits that a recipe's settings give a linear; 16 if a rule leaves it in BF16."""
    return DENSE if dynamic_rule(settings, module) is False else module_settings(settings, module)[0]


def choose_bits(result: Sensitivity, layout: TensorLayout, base: Recipe, budget: int) -> Choice:
    """Give more bits where they gain most per byte, until ``budget`` is spent.

    Steps are from 4 to 8 bits and from 8 bits to BF16; a module not measured in 8 bits goes straight to BF16. The
    step with the largest gain in measured KLD per byte that still fits is taken first. This assumes that gains add
    up; :class:`Together` measures how well they do.

    Raises:
        HybridError: a module of the layers was not measured with the bits that the base recipe gives it.
    """
    group_size = int(base.settings["group_size"])
    linears = {linear.name: linear for linear in layout.quantized}
    modules = [module for module in result.modules if module.layer is not None]
    current = {module.name: recipe_bits(base.settings, module.modules[0]) for module in modules}
    klds = {module.name: _kld_by_bits(module, current[module.name]) for module in modules}
    kld_before = sum(klds[module.name][current[module.name]] for module in modules)
    by_name = {module.name: module for module in modules}
    steps: list[tuple[float, str, int]] = []

    def growth(name: str, bits: int) -> int:
        module = by_name[name]
        before = _packed_size(module, linears, current[name], group_size)
        return _packed_size(module, linears, bits, group_size) - before

    def push_next_step(name: str) -> None:
        bits = next((b for b in _LADDER if b > current[name] and b in klds[name]), None)
        if bits is not None:
            gain, cost = klds[name][current[name]] - klds[name][bits], growth(name, bits)
            if gain > 0 and cost > 0:
                heapq.heappush(steps, (-gain / cost, name, bits))

    for name in by_name:
        push_next_step(name)
    spent, raised = 0, {}
    while steps:
        _, name, bits = heapq.heappop(steps)
        cost = growth(name, bits)
        if spent + cost <= budget:
            spent += cost
            current[name] = raised[name] = bits
            push_next_step(name)
    linear_bits = {linear: current[module.name] for module in modules for linear in module.modules}
    kld_after = sum(klds[name][current[name]] for name in by_name)
    return Choice(linear_bits, raised, budget, spent, kld_before, kld_after)


def _kld_by_bits(module: Module, base: int) -> dict[int, float]:
    """Return KLD by bits; for the same bits the quantized checkpoint's own weights count, not rounded ones."""
    klds = {DENSE: 0.0}
    # Later entries replace earlier ones.
    for measured in sorted(module.measured, key=lambda m: m.form == STORED):
        if measured.kld is not None:
            klds[measured.bits] = measured.kld.value
    if base not in klds:
        raise HybridError(
            f"{module.name} gets {base} bits from the base recipe and was measured with "
            f"{', '.join(map(str, sorted(set(klds) - {DENSE}))) or 'none'}",
            remedy=f"Scan with --bits {base} too.",
        )
    return klds


def _packed_size(module: Module, linears: Mapping[str, LinearSpec], bits: int, group_size: int) -> int:
    if bits == DENSE:
        return 2 * module.parameters
    return sum(packed_bytes(linears[name], bits, group_size) for name in module.modules)
