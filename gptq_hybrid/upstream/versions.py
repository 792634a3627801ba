"""Differences between versions of gptqmodel (6.0.3 to 7.7.0), found by looking rather than by version string.

Changes: ``GPTQMODEL_CPU_WORKERS`` becomes 2 on one or two cores; ``loop_processor._PROJECT_LOG_DIR`` a
    temporary folder.
Why: on so few cores gptqmodel counts one worker, asks its pool for two, and fails while loading ("Virtual pool
    'model_loader:cpu' …"). It also leaves a folder ``logs`` where it runs, whose figures are in ``quant_log.csv``.
Versions: 7.6.0 and 7.7.0 for the workers, 7.x for the folder; 6.0.3 logs elsewhere and is left alone.
Checks: the variable is not set already; the attribute exists.
May go: when gptqmodel counts its workers, and can be told where to log.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.versions import find_version


class IncompatibleError(HybridError):
    """The installed gptqmodel differs from every version this was written against."""


def installed_version() -> str:
    """Return the version of gptqmodel.

    Raises:
        HybridError: it is not installed.
    """
    version = find_version("gptqmodel")
    if version is None:
        raise HybridError(
            "gptqmodel is not installed", remedy="Run: pip install 'vllm-qwen36-plugin[quantize]'"
        )
    return version


def moved(expectation: str) -> IncompatibleError:
    """Return the error for a gptqmodel that does not meet ``expectation``, a clause such as "X is expected"."""
    return IncompatibleError(
        f"gptqmodel {installed_version()} has moved: {expectation}",
        remedy="Versions known to work: 6.0.3, 7.6.0, 7.7.0. Install one of them, or report this.",
    )


def prepare_environment() -> None:
    """Set what must stand before gptqmodel builds its thread pool."""
    if (os.cpu_count() or 1) < 3:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


def supports_shared_input_tags(definition: type) -> bool:
    """Whether this gptqmodel reads ``:in=TAG`` in a module tree (7.4 and later)."""
    return hasattr(definition, "shared_input_verified_model_types")


@contextmanager
def without_stray_logs() -> Iterator[None]:
    """Keep gptqmodel 7.x from leaving a ``logs`` folder in the working directory."""
    from gptqmodel.looper import loop_processor

    before = getattr(loop_processor, "_PROJECT_LOG_DIR", None)
    if before is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="qwen36-gptqmodel-") as folder:
        loop_processor._PROJECT_LOG_DIR = Path(folder)
        try:
            yield
        finally:
            loop_processor._PROJECT_LOG_DIR = before
