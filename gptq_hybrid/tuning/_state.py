"""The state of a tuning on disk: one file, replaced as a whole."""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gptq_hybrid.common.atomic import building_file
from gptq_hybrid.common.errors import HybridError

from ._parameters import Parameters

_NAME = "tuning.pt"


@dataclass
class Progress:
    """How far a tuning is.

    Attributes:
        step: steps done.
        losses: divergence of each step's own texts before it, nats a token.
        checks: (steps done, divergence of the stopping part as the file would hold it), from step 0 on.
        best: values of the parameters at the check with the least divergence.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    checks: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def best_step(self) -> int:
        """Steps done at the check with the least divergence; of equal ones the first."""
        return min(self.checks, key=lambda check: (check[1], check[0]))[0]


class TuningState:
    """Keeps parameters, optimizer and progress in ``folder``.

    Args:
        folder: where the file goes.
        key: of everything that decides the result; a state of another key is not used.
        every: seconds between two savings. A state of the 27B is 3.0 GB (computed).
    """

    def __init__(self, folder: Path, key: str, *, every: float = 60.0) -> None:
        self.path = folder / _NAME
        self._key = key
        self._every = every
        self._last = time.monotonic()

    def load(self, parameters: Parameters, optimizer: torch.optim.Optimizer) -> Progress:
        """Return what was saved, and put it into ``parameters`` and ``optimizer``; nothing, if there is none.

        Raises:
            HybridError: a state is there and cannot be read, or is of another tuning.
        """
        if not self.path.is_file():
            return Progress()
        remedy = "Begin anew with --restart, which throws the state away."
        try:
            content: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise HybridError(
                f"{self.path} cannot be read: {str(error).splitlines()[0]}", remedy=remedy
            ) from error
        if content["key"] != self._key:
            raise HybridError(f"{self.path} is the state of another tuning", remedy=remedy)
        parameters.load(content["values"])
        optimizer.load_state_dict(content["optimizer"])
        checks = [(int(step), float(value)) for step, value in content["checks"]]
        return Progress(content["step"], list(content["losses"]), checks, content["best"])

    def save_if_due(
        self, progress: Progress, parameters: Parameters, optimizer: torch.optim.Optimizer
    ) -> None:
        """:meth:`save`, if the last one is long enough ago."""
        if time.monotonic() - self._last >= self._every:
            self.save(progress, parameters, optimizer)

    def save(self, progress: Progress, parameters: Parameters, optimizer: torch.optim.Optimizer) -> None:
        """Write the file under a temporary name, then rename it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "key": self._key,
            "values": {name: value.detach() for name, value in parameters.values.items()},
            "optimizer": optimizer.state_dict(),
            "step": progress.step,
            "losses": progress.losses,
            "checks": progress.checks,
            "best": progress.best,
        }
        with building_file(self.path) as temporary:
            torch.save(content, temporary)
        self._last = time.monotonic()
