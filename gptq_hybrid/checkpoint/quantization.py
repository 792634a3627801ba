"""Reading a ``quantization_config`` the way vLLM and gptqmodel do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

GPTQ_METHODS = frozenset({"gptq", "gptq_marlin", "auto_gptq"})
# vLLM matches `dynamic` patterns with re.match against module names; a null value
# instead of an object crashes 0.27.1 and later when MTP is on, so it is never written.
MTP_RULE = r"-:^mtp\."


def method_of(quantization_config: Mapping[str, Any] | None) -> str | None:
    """``quant_method`` in lower case, or None for an unquantized checkpoint."""
    if quantization_config is None:
        return None
    return str(quantization_config.get("quant_method", "")).lower()


def excluded_by_dynamic(quantization_config: Mapping[str, Any], module: str) -> bool:
    """Whether a ``-:`` rule of ``dynamic`` leaves ``module`` unquantized."""
    dynamic: Mapping[str, Any] = quantization_config.get("dynamic") or {}
    for pattern in dynamic:
        if pattern.startswith("-:"):
            if re.match(pattern[2:], module):
                return True
        elif re.match(pattern.removeprefix("+:"), module):
            return False
    return False


def with_mtp_excluded(quantization_config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose ``dynamic`` explicitly leaves ``mtp.*`` alone, ahead of any other rule."""
    out = dict(quantization_config)
    out["dynamic"] = {MTP_RULE: {}, **(out.get("dynamic") or {})}
    return out
