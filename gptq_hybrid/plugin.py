"""The producer's contributions to the ``qwen36`` plugin group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptq_hybrid.checkpoint import hookimpl

if TYPE_CHECKING:
    from gptq_hybrid.checkpoint.calibration import CalibrationSource


@hookimpl
def qwen36_calibration_sources() -> list[CalibrationSource]:
    # Every check before a start of vLLM scans the plugins, and calibration takes 30 ms to import.
    from gptq_hybrid.calibration import BUILTIN_SOURCES

    return list(BUILTIN_SOURCES)
