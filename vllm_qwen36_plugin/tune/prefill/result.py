"""The result of ``qwen36 tune prefill``: a profile, the model's linears, and what follows from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_qwen36_plugin.prefill.profile import ROUTES, Profile, Route, to_json
from vllm_qwen36_plugin.prefill.shape import Shape

from .shapes import Linears

# Values of the plugin's option ``prefill`` that the result compares, and the routes that each tries in turn.
MODES: Mapping[str, tuple[Route, ...]] = {
    "auto": ("exact",),
    "a8": ("a8", "exact"),
    "fp8": ("fp8", "exact"),
}


@dataclass(frozen=True, slots=True)
class Tuned:
    """A profile of this GPU, the linears of the model that have each shape, and notes for people."""

    profile: Profile
    linears: Mapping[Shape, Linears]
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> list[int]:
        """Numbers of tokens that every shape was measured with, ascending."""
        each = [set(times["stock"]) for times in self.profile.times_us.values()]
        return sorted(set.intersection(*each)) if each else []

    @property
    def routes(self) -> list[str]:
        """``"stock"`` and the routes that any shape was measured with."""
        measured = {route for times in self.profile.times_us.values() for route in times}
        return [route for route in ("stock", *ROUTES) if route in measured]

    def route_for(self, shape: Shape, tokens: int, mode: str) -> str:
        """Say which route a call takes in a mode: ``"stock"`` or one of :data:`MODES`."""
        starts, times = self.profile.starts[shape], self.profile.times_us[shape]
        for route in MODES[mode]:
            start = getattr(starts, route)
            if route in times and start is not None and tokens >= start:
                return route
        return "stock"

    def milliseconds(self, tokens: int, mode: str | None) -> float:
        """Sum up one call of each measured linear of the model with ``tokens``; by vLLM's kernel for None."""
        times = self.profile.times_us
        return sum(
            linears.count
            * times[shape]["stock" if mode is None else self.route_for(shape, tokens, mode)][tokens]
            / 1e3
            for shape, linears in self.linears.items()
        )

    def as_json(self) -> dict[str, Any]:
        """Make the object that ``--json`` prints."""
        return {
            "linears": [
                {"shape": shape.key, "names": list(linears.names), "count": linears.count}
                for shape, linears in self.linears.items()
            ],
            "notes": list(self.notes),
            "milliseconds": {
                name: {str(tokens): round(self.milliseconds(tokens, mode), 4) for tokens in self.counts}
                for name, mode in (("stock", None), *((mode, mode) for mode in MODES))
                if mode is None or set(MODES[mode]) <= set(self.routes)
            },
            "profile": to_json(self.profile),
        }
