"""``MODELS_CONFIG_MAP``: where a model class may look at the whole config, before any engine exists.

Changes: the map's class for an architecture becomes a subclass of it that runs our check after its own.
Why: no public hook sees the whole configuration in the front process. An exception there ends it with one message.
Versions: same name, type and call in 0.19.1 to 0.33.0.
Checks: the map is a dict, and its entry a class with ``verify_and_update_config``.
May go: when vLLM lets a plugin check a configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_qwen36_plugin.errors import CompatError

_METHOD = "verify_and_update_config"


def add_config_check(architecture: str, name: str, check: Callable[[Any], None]) -> None:
    """Run ``check(vllm_config)`` after vLLM's own config hook for ``architecture``.

    Idempotent by ``name``. Checks of other names and of other plugins keep working.

    Raises:
        CompatError: the map or its entries are not what they were in any version read.
    """
    try:
        from vllm.model_executor.models import config as module
    except ImportError as error:
        raise CompatError(f"vllm.model_executor.models.config cannot be imported: {error}") from error
    config_map = getattr(module, "MODELS_CONFIG_MAP", None)
    if not isinstance(config_map, dict):
        raise CompatError("vllm.model_executor.models.config.MODELS_CONFIG_MAP is not a dict")
    base = config_map.get(architecture) or getattr(module, "VerifyAndUpdateConfig", None)
    inherited = getattr(base, _METHOD, None)
    if not isinstance(base, type) or not callable(inherited):
        raise CompatError(f"MODELS_CONFIG_MAP[{architecture!r}] is not a class with {_METHOD}()")
    names: frozenset[str] = getattr(base, "qwen36_checks", frozenset())
    if name in names:
        return

    def verify_and_update_config(vllm_config: Any) -> None:
        inherited(vllm_config)
        check(vllm_config)

    members = {_METHOD: staticmethod(verify_and_update_config), "qwen36_checks": names | {name}}
    config_map[architecture] = type(base.__name__, (base,), members)
