"""The producer's contributions to the ``qwen36`` plugin group; sources load their libraries when used."""

from __future__ import annotations

from gptq_hybrid.calibration import BUILTIN_SOURCES
from gptq_hybrid.checkpoint import hookimpl
from gptq_hybrid.checkpoint.calibration import CalibrationSource


@hookimpl
def qwen36_calibration_sources() -> list[CalibrationSource]:
    return list(BUILTIN_SOURCES)
