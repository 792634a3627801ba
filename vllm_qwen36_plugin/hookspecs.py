"""The plugin's own hook, by which other packages ship prefill profiles of cards.

Implementations are marked with ``gptq_hybrid.hooks.hookimpl``, as for the hooks of that package.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pluggy

from gptq_hybrid.hooks import get_plugin_manager

if TYPE_CHECKING:
    from .prefill.profile import ShippedProfile

hookspec = pluggy.HookspecMarker("qwen36")


@hookspec
def qwen36_prefill_profiles() -> list[ShippedProfile]:  # type: ignore[empty-body]
    """Contribute numbers of tokens from which each route is faster, for cards known by name.

    A measurement on the card itself goes first.
    """


def shipped_profiles() -> list[ShippedProfile]:
    """Collect the profiles of all installed packages, ours first."""
    manager = get_plugin_manager()
    # pluggy creates the hook, without its specification, when the first implementation is registered.
    if not manager.hook.qwen36_prefill_profiles.has_spec():
        manager.add_hookspecs(sys.modules[__name__])
    contributions = manager.hook.qwen36_prefill_profiles()
    return [profile for contribution in reversed(contributions) for profile in contribution]
