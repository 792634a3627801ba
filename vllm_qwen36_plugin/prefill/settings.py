"""The user's prefill options, as the kernels need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_qwen36_plugin.options import PluginOptions

from .profile import Route

Mode = Literal["auto", "exact", "a8", "fp8", "off"]
# Start of a route that the user asked for by name and nobody measured. On an H200 dequantizing first was faster
# than Marlin for every shape of the 27B from 1,024 tokens on (vLLM 0.26.0).
UNMEASURED = 1024
_ROUTES: dict[Mode, tuple[Route, ...]] = {
    "auto": ("exact",),
    "exact": ("exact",),
    "a8": ("a8", "exact"),
    "fp8": ("fp8", "exact"),
    "off": (),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Mode, bytes of scratch, and the file of a profile or None."""

    mode: Mode
    scratch_bytes: int
    profile: str | None

    @classmethod
    def from_options(cls, options: PluginOptions) -> Settings:
        """Take them from the plugin's options."""
        return cls(options.prefill, options.prefill_scratch_mib << 20, options.prefill_profile)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes a call may take, the most wanted first."""
        return _ROUTES[self.mode]


def current_settings() -> Settings:
    """Read the settings of the model that vLLM is building or loading."""
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    return Settings.from_options(PluginOptions.of(getattr(config, "additional_config", None)))
