"""What the producer contributes to the ``qwen36`` plugin group: families, rules, calibration sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptq_hybrid.hooks import CalibrationSource, hookimpl

if TYPE_CHECKING:
    from gptq_hybrid.checkpoint import Family
    from gptq_hybrid.doctor import Rule

# Each hook imports its room when called. Every check before a start of vLLM loads this module, and calibration
# alone takes 30 ms to import.


@hookimpl
def qwen36_families() -> list[Family]:
    from gptq_hybrid.checkpoint.families.qwen3_5 import QWEN3_5

    return [QWEN3_5]


@hookimpl
def qwen36_check_rules() -> list[Rule]:
    from gptq_hybrid.doctor.rules import BUILTIN_RULES

    return list(BUILTIN_RULES)


@hookimpl
def qwen36_calibration_sources() -> list[CalibrationSource]:
    from gptq_hybrid.calibration import BUILTIN_SOURCES
    from gptq_hybrid.demo.text import DEMO_SOURCE

    return [*BUILTIN_SOURCES, DEMO_SOURCE]
