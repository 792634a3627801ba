"""Libraries that only the extra ``eval`` brings."""

from __future__ import annotations

import importlib
from typing import Any

from gptq_hybrid.common.errors import HybridError


def need(module: str) -> Any:
    """Import ``module``.

    Raises:
        HybridError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise HybridError(
            f"{module.split('.')[0]} is not installed ({error.name}).",
            remedy="Run: pip install 'vllm-qwen36-plugin[eval]'",
        ) from error
