"""The custom op behind every W4A16 linear, and the table it looks its way up in.

torch.compile traces a Python ``if rows > …`` once, for the rows of the profile run, and vLLM drops the guard:
so the choice is made inside an op that it cannot look into. A compiled graph holds the shape's name, and no
number of a row: another profile needs no other graph.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .paths import Weight, exact, fp8
from .profile import PathName, Starts
from .shape import Shape

NAMESPACE, OP = "qwen36", "w4a16_linear"
_PATHS: dict[PathName, Callable[[torch.Tensor, Weight, Shape], torch.Tensor]] = {"exact": exact, "fp8": fp8}
# Kept: the op lives as long as its library.
_libraries: list[Any] = []
# Told once, at the next call of the op, that the table has changed: all shapes are in it then.
_on_first_call: list[Callable[[], None]] = []


@dataclass(slots=True)
class Linear:
    """All layers of one shape: the stock kernel, which of a layer's tensors it reads, and when to pass it by.

    ``order``: paths to try, the one that is wanted most first; ``starts`` their rows.
    """

    shape: Shape
    kernel: Any
    names: Sequence[str]
    words: int
    scales: int
    layer: weakref.ref[torch.nn.Module]
    starts: Starts = field(default_factory=Starts)
    order: tuple[PathName, ...] = ()
    served: Counter[str] = field(default_factory=Counter)
    rest: dict[str, Any] = field(default_factory=dict)

    def path_for(self, rows: int) -> PathName | None:
        """The path that takes so many rows; None for the stock kernel."""
        for path in self.order:
            start = getattr(self.starts, path)
            if start is not None and rows >= start:
                return path
        return None

    def weight(self, tensors: Sequence[torch.Tensor], fp8_scales: torch.Tensor | None) -> Weight:
        """The packed weight among a layer's tensors."""
        return Weight(tensors[self.words], tensors[self.scales], fp8_scales)

    def stock(
        self, x: torch.Tensor, tensors: Sequence[torch.Tensor], bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What vLLM's kernel returns for a layer with these tensors, ``[rows, n]``."""
        stand_in = _StandIn(self, tensors)
        return self.kernel.apply_weights(stand_in, x, bias)

    def run(self, path: PathName, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        """One path, whatever the number of rows."""
        return _PATHS[path](x, weight, self.shape)


class _StandIn:
    """A layer to a stock kernel's eyes: its tensors are the op's arguments, the rest that of one real layer."""

    def __init__(self, linear: Linear, tensors: Sequence[torch.Tensor]) -> None:
        # What was asked for once is there: through a module each attribute takes more than a microsecond.
        self.__dict__.update(linear.rest)
        self.__dict__.update(zip(linear.names, tensors, strict=True))
        self._linear = linear

    def __getattr__(self, name: str) -> Any:
        layer = self._linear.layer()
        if layer is None:
            raise AttributeError(name)
        found = self._linear.rest[name] = getattr(layer, name)
        return found


_table: dict[str, Linear] = {}


def put(linear: Linear) -> Linear:
    """Enter a shape, or what a later model has of it."""
    _table[linear.shape.key] = linear
    return linear


def get(key: str) -> Linear | None:
    """The shape of that name, if there is one."""
    return _table.get(key)


def linears() -> list[Linear]:
    """All of them, by name."""
    return [_table[key] for key in sorted(_table)]


def clear() -> None:
    """Forget them all."""
    _table.clear()


def at_next_call(tell: Callable[[], None]) -> None:
    """Call ``tell`` once, when the op runs next. What is waiting already is not entered twice."""
    if tell not in _on_first_call:
        _on_first_call.append(tell)


def w4a16_linear(
    x: torch.Tensor,
    tensors: list[torch.Tensor],
    fp8_scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    key: str,
    n: int,
) -> torch.Tensor:
    """``x @ W + bias`` for x ``[rows, k]``: ``[rows, n]``. With a bias by the stock kernel, which permutes it."""
    while _on_first_call:
        _on_first_call.pop()()
    linear = _table[key]
    path = None if bias is not None else linear.path_for(x.shape[0])
    linear.served[path or "stock"] += 1
    if path is None:
        return linear.stock(x, tensors, bias)
    return linear.run(path, x.contiguous(), linear.weight(tensors, fp8_scales))


def _shape_of_result(
    x: torch.Tensor,
    tensors: list[torch.Tensor],
    fp8_scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    key: str,
    n: int,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], n)


def op() -> Callable[..., torch.Tensor]:
    """The op; registered with torch when first asked for."""
    if not hasattr(getattr(torch.ops, NAMESPACE), OP):
        from vllm.utils.torch_utils import direct_register_custom_op

        library = torch.library.Library(NAMESPACE, "FRAGMENT")
        direct_register_custom_op(
            OP,
            w4a16_linear,
            fake_impl=_shape_of_result,
            target_lib=library,
            tags=(torch.Tag.needs_fixed_stride_order,),
        )
        _libraries.append(library)
    return getattr(getattr(torch.ops, NAMESPACE), OP)  # type: ignore[no-any-return]
