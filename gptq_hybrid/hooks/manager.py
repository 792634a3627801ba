"""The plugin manager: built-in contributions plus the ``qwen36`` entry-point group."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import pluggy

from . import specs

ENTRY_POINT_GROUP = "qwen36"
# Loaded by name, as any third party's would be: this room knows no other. They are here before entry points
# are read, so that a source tree without metadata has its families and rules.
BUILTIN_PLUGINS = {"gptq_hybrid": "gptq_hybrid.plugin"}


@cache
def get_plugin_manager() -> pluggy.PluginManager:
    """Return the one manager of this process, with every installed plugin loaded."""
    manager = pluggy.PluginManager("qwen36")
    manager.add_hookspecs(specs)
    for name, module in BUILTIN_PLUGINS.items():
        manager.register(import_module(module), name=name)
    # An entry point whose name is registered already is skipped by pluggy.
    manager.load_setuptools_entrypoints(ENTRY_POINT_GROUP)
    return manager


def contributions(hook: str) -> list[Any]:
    """Call a hook that returns lists, and join them: built-ins first, then plugins in order of registration."""
    # pluggy calls the last registered first.
    lists = getattr(get_plugin_manager().hook, hook)()
    return [item for contribution in reversed(lists) for item in contribution]
