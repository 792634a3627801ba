"""Program: load the plugin as vLLM would in this environment, and print as JSON what became of it.

A process of its own, as importing vLLM takes seconds and says much: ``python -m vllm_qwen36_plugin.env.probe``.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import entry_points
from typing import Any

GROUP, NAME = "vllm.general_plugins", "qwen36"


def not_loaded() -> str:
    """Say why vLLM would not load the plugin here; empty if it would."""
    if not [entry for entry in entry_points(group=GROUP) if entry.name == NAME]:
        return "no entry point of it is installed in this Python (pip install . beside vLLM)"
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and NAME not in allowed.split(","):
        return f"VLLM_PLUGINS={allowed!r} does not name it (unset it, or add {NAME})"
    try:
        import vllm  # noqa: F401
    except Exception as error:  # noqa: BLE001 - whatever keeps vLLM from being imported is the answer
        return f"vLLM cannot be imported: {error or repr(error)}"
    return ""


def probe() -> dict[str, Any]:
    """Return ``{"why_not", "platform", "features": [{"name", "on", "why"}]}``; no features if it is not loaded."""
    why_not = not_loaded()
    if why_not:
        return {"why_not": why_not, "platform": None, "features": []}
    from vllm.platforms import current_platform

    from vllm_qwen36_plugin.features import install_features

    features = [installed._asdict() for installed in install_features()]
    return {"why_not": "", "platform": str(current_platform.device_type), "features": features}


if __name__ == "__main__":
    result = json.dumps(probe())
    sys.stdout.write(f"\n{result}\n")
