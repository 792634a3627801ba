"""What ``qwen36 tune`` finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_qwen36_plugin.prefill.profile import PathName, Profile, to_json
from vllm_qwen36_plugin.prefill.shape import Shape

from .shapes import Linears

# What `prefill` of the plugin's options may be set to, and the paths it tries in turn.
MODES: Mapping[str, tuple[PathName, ...]] = {"auto": ("exact",), "fp8": ("fp8", "exact")}


@dataclass(frozen=True, slots=True)
class Tuned:
    """A profile of this GPU, which linears of the model each of its shapes is, and what went wrong on the way."""

    profile: Profile
    linears: Mapping[Shape, Linears]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[int]:
        """Numbers of rows that every shape was measured with, ascending."""
        each = [set(times["stock"]) for times in self.profile.times_us.values()]
        return sorted(set.intersection(*each)) if each else []

    @property
    def paths(self) -> list[str]:
        """``"stock"`` and the paths that any shape was measured with."""
        every = {path for times in self.profile.times_us.values() for path in times}
        return [path for path in ("stock", "exact", "fp8") if path in every]

    def taken(self, shape: Shape, rows: int, mode: str) -> str:
        """The path that a call with so many rows goes in a ``prefill`` mode: ``"stock"`` or one of `MODES`."""
        starts, times = self.profile.starts[shape], self.profile.times_us[shape]
        for path in MODES[mode]:
            start = getattr(starts, path)
            if path in times and start is not None and rows >= start:
                return path
        return "stock"

    def milliseconds(self, rows: int, mode: str | None) -> float:
        """All measured linears of the model, one call each with so many rows; by vLLM's kernel for None."""
        times = self.profile.times_us
        return sum(
            linears.count
            * times[shape]["stock" if mode is None else self.taken(shape, rows, mode)][rows]
            / 1e3
            for shape, linears in self.linears.items()
        )

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "linears": [
                {"shape": shape.key, "names": list(linears.names), "count": linears.count}
                for shape, linears in self.linears.items()
            ],
            "notes": list(self.notes),
            "milliseconds": {
                name: {str(rows): round(self.milliseconds(rows, mode), 4) for rows in self.rows}
                for name, mode in (("stock", None), ("auto", "auto"), ("fp8", "fp8"))
                if mode is None or set(MODES[mode]) <= set(self.paths)
            },
            "profile": to_json(self.profile),
        }
