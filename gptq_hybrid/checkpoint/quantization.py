"""Read a GPTQ ``quantization_config`` the way vLLM and gptqmodel do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .patterns import matches

GPTQ_METHODS = frozenset({"gptq", "gptq_marlin", "auto_gptq"})
# vLLM matches `dynamic` patterns with re.match against module names. A null value in place of the object crashes
# 0.27.1 and later when MTP is on, so none is ever written.
MTP_RULE = r"-:^mtp\."


def quant_method(quantization_config: Mapping[str, Any] | None) -> str | None:
    """``quant_method`` in lower case, empty where the config has none; None for an unquantized checkpoint."""
    if quantization_config is None:
        return None
    return str(quantization_config.get("quant_method") or "").lower()


def dynamic_rule(
    quantization_config: Mapping[str, Any], module: str
) -> Mapping[str, Any] | Literal[False] | None:
    """Look a module up in ``dynamic``: False leaves it unquantized, a mapping overrides settings, None is no rule.

    The first pattern that matches decides; one that is not a regular expression matches nothing.

    Raises:
        CheckpointError: a pattern takes forever to match.
    """
    dynamic = quantization_config.get("dynamic")
    for pattern, overrides in (dynamic if isinstance(dynamic, Mapping) else {}).items():
        negative = pattern.startswith("-:")
        if matches(pattern.removeprefix("-:").removeprefix("+:"), module):
            return False if negative else overrides if isinstance(overrides, Mapping) else {}
    return None


def excluded_by_dynamic(quantization_config: Mapping[str, Any], module: str) -> bool:
    """Whether a ``-:`` rule of ``dynamic`` leaves ``module`` unquantized."""
    return dynamic_rule(quantization_config, module) is False


def asks_for_act_order(quantization_config: Mapping[str, Any]) -> bool:
    """Whether any module may be in act order, by the test with which vLLM 0.30 and later refuse it.

    With one group a column (-1) there is no order.
    """
    base, size = bool(quantization_config.get("desc_act")), quantization_config.get("group_size", 128)
    if base and size != -1:
        return True
    dynamic = quantization_config.get("dynamic")
    return any(
        isinstance(overrides, Mapping)
        and not pattern.startswith("-:")
        and bool(overrides.get("desc_act", base))
        and overrides.get("group_size", size) != -1
        for pattern, overrides in (dynamic.items() if isinstance(dynamic, Mapping) else ())
    )


def with_mtp_excluded(quantization_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy whose ``dynamic`` leaves ``mtp.*`` unquantized, ahead of any other rule."""
    out = dict(quantization_config)
    dynamic = out.get("dynamic")
    out["dynamic"] = {MTP_RULE: {}, **(dynamic if isinstance(dynamic, Mapping) else {})}
    return out
