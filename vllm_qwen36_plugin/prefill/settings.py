"""What the user asked for, as the kernels need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_qwen36_plugin.options import PluginOptions

from .profile import PathName

Mode = Literal["auto", "exact", "fp8", "off"]
# Where nothing was measured and a path is asked for by name. On an H200 dequantizing first was faster than
# Marlin for every shape of the 27B from 1,024 rows on (vLLM 0.26.0).
UNMEASURED = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """``mode``; bytes of scratch; a profile's file, or None."""

    mode: Mode
    scratch_bytes: int
    profile: str | None

    @classmethod
    def of(cls, options: PluginOptions) -> Settings:
        """From the plugin's options."""
        return cls(options.prefill, options.prefill_scratch_mib << 20, options.prefill_profile)

    @property
    def order(self) -> tuple[PathName, ...]:
        """Paths that may be taken, the one wanted most first."""
        return {"auto": ("exact",), "exact": ("exact",), "fp8": ("fp8", "exact"), "off": ()}[self.mode]  # type: ignore[return-value]
