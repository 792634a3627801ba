"""Libraries that only the extra ``eval`` installs."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from .errors import HybridError


def refuse_missing(*modules: str) -> None:
    """Refuse to go on without optional libraries; none is imported.

    Raises:
        HybridError: one is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(module, module)


def need(module: str) -> Any:
    """Import a module of an optional library.

    Raises:
        HybridError: the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(module.split(".")[0], error.name) from error


def _missing(library: str, module: str | None) -> HybridError:
    return HybridError(
        f"{library} is not installed ({module}).", remedy="Run: pip install 'vllm-qwen36-plugin[eval]'"
    )
