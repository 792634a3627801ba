"""The plugin manager: built-in contributions, then the ``qwen36`` entry-point group."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import pluggy

from . import specs

ENTRY_POINT_GROUP = "qwen36"
# Loaded by name, as a third party's plugin is, so that this room depends on no room above it. They are
# registered before entry points are read: a source tree without metadata still has its families and rules.
BUILTIN_PLUGINS = {"gptq_hybrid": "gptq_hybrid.plugin"}


@cache
def get_plugin_manager() -> pluggy.PluginManager:
    """Return this process's plugin manager, with every installed plugin loaded."""
    manager = pluggy.PluginManager("qwen36")
    manager.add_hookspecs(specs)
    for name, module in BUILTIN_PLUGINS.items():
        manager.register(import_module(module), name=name)
    # pluggy skips an entry point whose name is registered already.
    manager.load_setuptools_entrypoints(ENTRY_POINT_GROUP)
    return manager


def contributions(hook: str) -> list[Any]:
    """Call a hook whose implementations return lists; join the lists in order of registration, built-ins first."""
    # pluggy calls the implementation registered last first.
    lists = getattr(get_plugin_manager().hook, hook)()
    return [item for contribution in reversed(lists) for item in contribution]
