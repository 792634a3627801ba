"""All that makes gptqmodel quantize faster, at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ._forward import ForwardCounts, mixer_once
from ._hessian import Products, hessian_products
from ._solver import block_kernel, swift_solver


@contextmanager
def faster(*, products: Products = "ieee", room: int | None = None) -> Iterator[ForwardCounts]:
    """Quantize the same, faster: to be entered around a definition's ``quantize``, not within.

    Args:
        products: how Hessians are multiplied. With ``"ieee"`` the result has the bytes of gptqmodel without this;
            the others differ in the last digits of Hessians (see ``_hessian``).
        room: bytes of a GPU for what is kept of a layer between passes (see :func:`mixer_once`).

    Raises:
        IncompatibleError: this gptqmodel or transformers is not one that this was written for. Nothing is changed
            then, and gptqmodel quantizes as it does without.
    """
    with ExitStack() as stack:
        counts = stack.enter_context(mixer_once(room=room))
        stack.enter_context(swift_solver())
        stack.enter_context(block_kernel())
        stack.enter_context(hessian_products(products))
        yield counts
