"""Version differences of gptqmodel (6.0.3 to 7.7.0), found by looking rather than by version string."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gptq_hybrid.common.errors import HybridError


class IncompatibleError(HybridError):
    """The installed gptqmodel differs from every version this was written against."""


def installed_version() -> str:
    try:
        return version("gptqmodel")
    except PackageNotFoundError as error:
        raise HybridError(
            "gptqmodel is not installed", remedy="Run: pip install 'vllm-qwen36-plugin[quantize]'"
        ) from error


def moved(what: str) -> IncompatibleError:
    return IncompatibleError(
        f"gptqmodel {installed_version()} has moved: {what}",
        remedy="Versions known to work: 6.0.3, 7.6.0, 7.7.0. Install one of them, or report this.",
    )


def prepare_environment() -> None:
    """Settings that must stand before gptqmodel builds its thread pool.

    With one or two cores 7.6.0 and 7.7.0 compute one CPU worker but ask their
    pool for two, and fail while loading ("Virtual pool 'model_loader:cpu' …").
    """
    if (os.cpu_count() or 1) < 3:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


def supports_shared_input_tags(definition: type) -> bool:
    """Whether this gptqmodel reads ``:in=TAG`` in a module tree (7.4 and later)."""
    return hasattr(definition, "shared_input_verified_model_types")


@contextmanager
def without_stray_logs() -> Iterator[None]:
    """Keep gptqmodel 7.x from leaving a ``logs`` folder in the working directory.

    The same figures are in ``quant_log.csv``. 6.0.3 writes elsewhere and is left alone.
    """
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
