"""What the plugin contributes to the ``qwen36`` plugin group.

Every check before a start of vLLM scans that group and asks for none of this, so each hook imports what it returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptq_hybrid.hooks import GpuProfile, hookimpl

if TYPE_CHECKING:
    import typer

    from .prefill.profile import ShippedProfile


@hookimpl
def qwen36_gpu_profiles() -> list[GpuProfile]:
    from .profiles import CARDS

    return list(CARDS)


# Last for pluggy is first in `shipped_profiles`: whatever the order of distributions, a third party's profile of
# the same card comes after ours and wins.
@hookimpl(trylast=True)
def qwen36_prefill_profiles() -> list[ShippedProfile]:
    from .profiles.derived_prefill import DERIVED_PREFILL_PROFILES

    return list(DERIVED_PREFILL_PROFILES)


@hookimpl
def qwen36_commands(app: typer.Typer) -> None:
    from .cli import add_commands

    add_commands(app)
