"""How much scratch the routes of a model need: reserved while it is loaded, and given back once they are known."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from . import scratch
from .dispatch import Linear
from .profile import Route
from .shape import Shape

# Bytes of a value that a dense route writes to the scratch.
_ITEMSIZE: dict[Route, int] = {"exact": 2, "fp8": 1}


def scratch_bytes(shape: Shape, routes: Sequence[Route], itemsize: int, size: int) -> int:
    """Compute what some routes need of a scratch buffer of at most ``size`` bytes.

    ``itemsize``: bytes of an activation. Words of 8-bit activations go through it whole, or not at all.
    """
    dense = [itemsize if route == "exact" else _ITEMSIZE[route] for route in routes if route != "a8"]
    words = scratch.word_bytes(shape.k, shape.n) if "a8" in routes else 0
    return max(scratch.largest_tile(shape.k, shape.n, dense, size), words if words <= size else 0)


def reserve(device: torch.device, shape: Shape, routes: Sequence[Route], itemsize: int, size: int) -> None:
    """Reserve room for what a shape's routes need: arguments as :func:`scratch_bytes`."""
    # If no part fits, the route's test says how much it needs.
    scratch.reserve(device, scratch_bytes(shape, routes, itemsize, size) or size)


def give_back(linears: Collection[Linear]) -> None:
    """Free what no route of these linears takes."""
    for device in scratch.devices():
        size = scratch.reserved(device)
        parts = (scratch_bytes(at.shape, list(filter(at.takes, at.routes)), 2, size) for at in linears)
        scratch.shrink(device, max(parts, default=0))
