"""What a recipe's table ``[tune]`` holds. Light to import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """How scales and norms are tuned.

    Attributes:
        steps: of the optimizer.
        tokens: of a step, at least; a step ends with a whole document.
        documents: drawn for it, beside those that are calibrated on.
        scale_rate: learning rate of the relative changes of scales.
        norm_rate: learning rate of norm gains; 0 leaves them as they are.
    """

    steps: int = 100
    tokens: int = 8192
    documents: int = 768
    scale_rate: float = 2e-3
    norm_rate: float = 1e-3

    @property
    def checks(self) -> int:
        """Steps between two looks at the stopping part: eight in all."""
        return max(1, -(-self.steps // 8))
