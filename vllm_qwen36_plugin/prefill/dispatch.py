"""The custom ops behind every W4A16 linear, and the table they look their way up in.

torch.compile traces a Python ``if rows > …`` once, for the rows of the profile run, and vLLM drops the guard:
so the choice is made inside an op that it cannot look into. A compiled graph holds the shape's name, and no
number of a row: another profile needs no other graph.

What an op costs the host is part of every prefill too short for a CUDA graph and too small to keep the GPU busy.
Two ops, then: ``w4a16_linear`` for whatever a stock kernel reads, and ``w4a16_plain`` for words and scales alone,
which nearly every linear has. Torch takes a microsecond less to hand over fewer arguments and no list (of 4.5;
`bench/prefill/host.py`).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .paths import Weight, exact, fp8
from .profile import GemmName, PathName, Starts
from .replay import Replay, Template
from .shape import Shape

NAMESPACE, OP, PLAIN_OP = "qwen36", "w4a16_linear", "w4a16_plain"
# Kept: the op lives as long as its library.
_libraries: list[Any] = []
# Told once, at the next call of the op, that the table has changed: all shapes are in it then.
_on_first_call: list[Callable[[], None]] = []


@dataclass(slots=True)
class Linear:
    """All layers of one shape: the stock kernel, which of a layer's tensors it reads, and when to pass it by.

    ``order``: paths to try, the one that is wanted most first; ``starts`` their rows. ``gemms``: those that ``fp8``
    may multiply with. ``replay``: the stock kernel's own call of its op, where it is known (`replays`).
    """

    shape: Shape
    kernel: Any
    names: Sequence[str]
    words: int
    scales: int
    layer: weakref.ref[torch.nn.Module]
    starts: Starts = field(default_factory=Starts)
    order: tuple[PathName, ...] = ()
    gemms: tuple[GemmName, ...] = ("vllm",)
    served: Counter[str] = field(default_factory=Counter)
    rest: dict[str, Any] = field(default_factory=dict)
    template: Template | None = None
    replay: Replay | None = None

    @property
    def plain(self) -> bool:
        """Whether the stock kernel reads words and scales, in the order of ``w4a16_plain``, and no other tensor."""
        return (self.words, self.scales, len(self.names)) == (0, 1, 2)

    def replays(self, template: Template | None) -> None:
        """Have the stock kernel's op called as the template says, or by the kernel itself."""
        self.template = template
        self.replay = None if template is None else template.bound(self.kernel)

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
        replay = self.replay
        # Noted with contiguous rows: a kernel can make others so first.
        if replay is not None and bias is None and x.is_contiguous():
            return replay(x, tensors)
        return self.by_vllm(x, tensors, bias)

    def by_vllm(
        self, x: torch.Tensor, tensors: Sequence[torch.Tensor], bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The same by vLLM's own Python, always."""
        return self.kernel.apply_weights(_StandIn(self, tensors), x, bias)

    def run(
        self, path: PathName, x: torch.Tensor, weight: Weight, gemm: GemmName | None = None
    ) -> torch.Tensor:
        """One path, whatever the number of rows; ``fp8`` by the GEMM that was found best, or another."""
        if path == "exact":
            return exact(x, weight, self.shape)
        return fp8(x, weight, self.shape, gemm or self.starts.fp8_gemm)


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
        found = getattr(layer, name)
        # vLLM's parameters hold their layer by it, and with that the model.
        if not hasattr(found, "weight_loader"):
            self._linear.rest[name] = found
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


@contextmanager
def trial() -> Iterator[None]:
    """For calls that try a layer out while others are still to be loaded: none of them is the next call."""
    waiting = _on_first_call.copy()
    _on_first_call.clear()
    try:
        yield
    finally:
        _on_first_call[:] = waiting


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


def w4a16_plain(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    fp8_scales: torch.Tensor | None,
    key: str,
    n: int,
) -> torch.Tensor:
    """The same for a `Linear.plain`, without a bias."""
    while _on_first_call:
        _on_first_call.pop()()
    linear = _table[key]
    path = linear.path_for(x.shape[0])
    if path is None:
        linear.served["stock"] += 1
        return linear.stock(x, (words, scales))
    linear.served[path] += 1
    return linear.run(path, x.contiguous(), Weight(words, scales, fp8_scales))


def _shape_of_result(
    x: torch.Tensor,
    tensors: list[torch.Tensor],
    fp8_scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    key: str,
    n: int,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], n)


def _shape_of_plain(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    fp8_scales: torch.Tensor | None,
    key: str,
    n: int,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], n)


def op() -> Callable[..., torch.Tensor]:
    """``w4a16_linear``; registered with torch when first asked for."""
    return _registered(OP, w4a16_linear, _shape_of_result)


def plain_op() -> Callable[..., torch.Tensor]:
    """``w4a16_plain``, likewise."""
    return _registered(PLAIN_OP, w4a16_plain, _shape_of_plain)


def _registered(
    name: str, function: Callable[..., torch.Tensor], fake: Callable[..., torch.Tensor]
) -> Callable[..., torch.Tensor]:
    if not hasattr(getattr(torch.ops, NAMESPACE), name):
        from vllm.utils.torch_utils import direct_register_custom_op

        library = torch.library.Library(NAMESPACE, "FRAGMENT")
        direct_register_custom_op(
            name,
            function,
            fake_impl=fake,
            target_lib=library,
            tags=(torch.Tag.needs_fixed_stride_order,),
        )
        _libraries.append(library)
    return getattr(getattr(torch.ops, NAMESPACE), name)  # type: ignore[no-any-return]
