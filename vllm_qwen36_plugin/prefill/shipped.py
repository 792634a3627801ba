"""Profiles that are shipped: ours, and those of other packages through a hook."""

from __future__ import annotations

from gptq_hybrid.hooks import get_plugin_manager
from vllm_qwen36_plugin import hookspecs

from .profile import ShippedProfile


def shipped_profiles() -> list[ShippedProfile]:
    """All of them, ours first."""
    manager = get_plugin_manager()
    # pluggy makes the hook for the first implementation that it sees, without what is specified of it.
    if not manager.hook.qwen36_prefill_profiles.has_spec():
        manager.add_hookspecs(hookspecs)
    found = manager.hook.qwen36_prefill_profiles()
    return [profile for contribution in reversed(found) for profile in contribution]
