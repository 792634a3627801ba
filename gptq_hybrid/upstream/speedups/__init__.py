"""Make gptqmodel quantize faster, with the same result: :func:`faster` enters all of it at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ._forward import ForwardCounts, mixer_once, room_on_gpu
from ._hessian import Products, gram, hessian_products
from ._inverse import direct_inverse
from ._moves import pinned_layers
from ._packing import gpu_packing
from ._search import swift_search
from ._sweep import block_kernel
from .solver import swift_solver

__all__ = [
    "ForwardCounts",
    "Products",
    "block_kernel",
    "direct_inverse",
    "faster",
    "gpu_packing",
    "gram",
    "hessian_products",
    "mixer_once",
    "pinned_layers",
    "room_on_gpu",
    "swift_search",
    "swift_solver",
]

# Seconds after which a thread that wants Python's lock gets it from one that keeps it. By default it is 5 ms, which
# the solver waits after each operation that gave the lock up, while modules are packed beside it.
_SWITCH_INTERVAL = 5e-4
_active: list[ForwardCounts] = []


@contextmanager
def faster(*, products: Products = "ieee", room: int | None = None) -> Iterator[ForwardCounts]:
    """Quantize the same, faster: to be entered around gptqmodel's ``quantize`` and all else that wraps its solver.

    Within another ``faster`` it changes nothing: the outer one's arguments hold.

    Args:
        products: how Hessians are multiplied. With ``"ieee"`` the result has the bytes of gptqmodel without this.
            With the others, on a GPU, the last digits of Hessians differ (see ``_hessian``), and of the factors of
            their inverses, which are then found more directly (see ``_inverse``).
        room: bytes of a GPU for what is kept of a layer between passes (see :func:`mixer_once`).

    Raises:
        IncompatibleError: this gptqmodel or transformers is not one that this was written for. Nothing is changed
            then, and gptqmodel quantizes as it does without.
    """
    if _active:
        yield _active[-1]
        return
    with ExitStack() as stack:
        counts = stack.enter_context(mixer_once(room=room))
        stack.enter_context(swift_solver())
        stack.enter_context(swift_search())
        stack.enter_context(block_kernel())
        stack.enter_context(gpu_packing(stack.enter_context(pinned_layers())))
        stack.enter_context(hessian_products(products))
        if products != "ieee":
            stack.enter_context(direct_inverse())
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(_SWITCH_INTERVAL)
        stack.callback(_active.pop)
        _active.append(counts)
        yield counts
