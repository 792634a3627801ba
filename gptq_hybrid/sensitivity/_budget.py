"""Which modules are worth more bits, within so many bytes."""

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

from ._result import Module, Sensitivity

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[kmg]i?b|b?)", re.IGNORECASE)
DENSE = 16
_LADDER = (4, 8, DENSE)


@dataclass(frozen=True, slots=True)
class Choice:
    """Bits by linear that differ from ``base`` bits, and what they cost and gain.

    Attributes:
        bits: 4, 8 or 16 (BF16) of every linear of the layers.
        raised: units given more bits than the base recipe gives, by name.
        extra_bytes: of files, more than with the base recipe; at most ``budget``.
        kld_before, kld_after: sums of what modules cost by themselves.
    """

    bits: dict[str, int]
    raised: dict[str, int]
    budget: int
    extra_bytes: int
    kld_before: float
    kld_after: float


def budget_bytes(text: str, layout: TensorLayout, base: Recipe) -> int:
    """Bytes of ``500MB``, ``1.5GiB``, ``800000`` or ``3%`` (of the checkpoint that ``base`` makes).

    Raises:
        HybridError: ``text`` is none of these.
    """
    found = _BUDGET.fullmatch(text.strip())
    if found is None:
        raise HybridError(
            f"--budget {text!r} is no size", remedy="Such as 500MB, 1.5GiB, or 3% of the checkpoint."
        )
    number, unit = float(found[1]), found[2].lower()
    if unit == "%":
        return int(number / 100 * quantized_bytes(layout, base.settings, base.packaging))
    return int(number * _UNITS[unit.removesuffix("b") if unit == "b" else unit])


def base_bits(settings: Mapping[str, Any], module: str) -> int:
    """Bits that a recipe's settings give a linear; 16 where a rule leaves it in BF16."""
    return DENSE if dynamic_rule(settings, module) is False else module_settings(settings, module)[0]


def choose(result: Sensitivity, layout: TensorLayout, base: Recipe, budget: int) -> Choice:
    """More bits where they gain most per byte, until ``budget`` is spent.

    Steps are 4 to 8 bits (by the measured KLD of both; straight to BF16 where 8 bits were not measured) and 8 bits
    to BF16. The step with the largest gain per byte that still fits is taken first. Gains are taken to add up,
    which :class:`Together` measures.

    Raises:
        HybridError: a module of the layers was not measured with the bits that the base recipe gives it.
    """
    group_size = int(base.settings["group_size"])
    linears = {linear.name: linear for linear in layout.quantized}
    modules = [module for module in result.modules if module.layer is not None]
    now: dict[str, int] = {}
    for module in modules:
        now[module.name] = base_bits(base.settings, module.modules[0])
    klds = {module.name: _measured(module, now[module.name]) for module in modules}
    kld_before = sum(klds[module.name][now[module.name]] for module in modules)
    by_name = {module.name: module for module in modules}
    steps: list[tuple[float, str, int]] = []

    def offer(name: str) -> None:
        step = _step(klds[name], now[name])
        if step is not None:
            gain = klds[name][now[name]] - klds[name][step]
            cost = _bytes(by_name[name], linears, step, group_size)
            cost -= _bytes(by_name[name], linears, now[name], group_size)
            if gain > 0 and cost > 0:
                heapq.heappush(steps, (-gain / cost, name, step))

    for name in by_name:
        offer(name)
    spent, raised = 0, {}
    while steps:
        _, name, step = heapq.heappop(steps)
        cost = _bytes(by_name[name], linears, step, group_size)
        cost -= _bytes(by_name[name], linears, now[name], group_size)
        if spent + cost <= budget:
            spent += cost
            now[name] = raised[name] = step
            offer(name)
    bits = {linear: now[module.name] for module in modules for linear in module.modules}
    kld_after = sum(klds[name][now[name]] for name in by_name)
    return Choice(bits, raised, budget, spent, kld_before, kld_after)


def _measured(module: Module, wanted: int) -> dict[int, float]:
    """KLD by bits; the quantized checkpoint's own weights stand before rounded ones."""
    found = {DENSE: 0.0}
    for measured in sorted(module.measured, key=lambda m: m.form == "stored"):
        if measured.kld is not None:
            found[measured.bits] = measured.kld.value
    if wanted not in found:
        raise HybridError(
            f"{module.name} gets {wanted} bits from the base recipe and was measured with "
            f"{', '.join(map(str, sorted(set(found) - {DENSE}))) or 'none'}",
            remedy=f"Scan with --bits {wanted} too.",
        )
    return found


def _step(klds: Mapping[int, float], now: int) -> int | None:
    return next((bits for bits in _LADDER if bits > now and bits in klds), None)


def _bytes(module: Module, linears: Mapping[str, LinearSpec], bits: int, group_size: int) -> int:
    if bits == DENSE:
        return 2 * module.parameters
    return sum(packed_bytes(linears[name], bits, group_size) for name in module.modules)
