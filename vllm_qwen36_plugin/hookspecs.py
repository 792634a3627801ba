"""What third parties can add to the plugin; marked with the same ``hookimpl`` as the checkpoint package's hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .prefill.profile import ShippedProfile

hookspec = pluggy.HookspecMarker("qwen36")


@hookspec
def qwen36_prefill_profiles() -> list[ShippedProfile]:  # type: ignore[empty-body]
    """From how many rows on which path is faster, for cards known by name. A measurement on the card goes first."""
