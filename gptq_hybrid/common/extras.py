"""Libraries that only the extra ``eval`` installs."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import HybridError


def need(module: str) -> Any:
    """Import a module of an optional library.

    Raises:
        HybridError: the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise HybridError(
            f"{module.split('.')[0]} is not installed ({error.name}).",
            remedy="Run: pip install 'vllm-qwen36-plugin[eval]'",
        ) from error
