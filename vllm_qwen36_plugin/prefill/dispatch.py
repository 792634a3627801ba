"""The custom ops behind every W4A16 linear, and the table in which they look up the route of a call.

torch.compile traces a Python ``if tokens > …`` once, for the tokens of the profile run, and vLLM drops the
guard. So the choice is made inside an op that torch.compile cannot look into. A compiled graph holds the shape's
name and no number of tokens: another profile needs no other graph.

What an op costs the host is part of every prefill that is too short for a CUDA graph and too small to keep the
GPU busy. So there are two ops: ``w4a16_linear`` for whatever tensors a stock kernel reads, and ``w4a16_plain``
for words and scales alone, which nearly every linear has. Fewer arguments and no list save one of torch's 4.5
microseconds (``bench/prefill/host.py`` at commit 8dde607).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from .guard import Guard
from .mixed import before_prompts, pays
from .pace import Pace
from .profile import EIGHT_BIT, GemmName, Route, Starts
from .replay import Replay, Template
from .routes import Weight, exact, fp8
from .shape import Shape

if TYPE_CHECKING:
    from .humming_8bit import EightBitKernel

NAMESPACE, OP, PLAIN_OP = "qwen36", "w4a16_linear", "w4a16_plain"
# An op lives as long as its library.
_libraries: list[Any] = []
# Called once, at the next call of an op: the table is complete then.
_on_first_call: list[Callable[[], None]] = []
_pace = [Pace()]
_guard = [Guard()]
# Decisions that are kept, of steps that mix prompts and decoding.
_CUTS = 4096
Way = Route | Literal["stock", "humming"]


@dataclass(slots=True)
class Linear:
    """All layers of one shape.

    Attributes:
        kernel: the stock kernel.
        names: the layer's tensors that it reads.
        words: index of the packed words among them.
        scales: index of the scales.
        layer: one real layer.
        starts: numbers of tokens from which each route is taken.
        routes: routes that may be taken, the most wanted first.
        gemms: GEMMs that ``fp8`` may multiply with.
        humming: Humming's kernel for these weights, if it may take calls from the stock one.
        eight_bit: what ``a8`` multiplies by, if it is served.
        moved: whether vLLM would have had Machete hold these weights.
        layers: linears of this shape in the model.
        served: calls by way, ``"stock"`` and ``"humming"`` among them; one that is cut in two counts for both.
        rows: tokens by way.
        times: microseconds by way and number of tokens, if they were measured.
        attributes: what the stock kernel has asked of the layer besides tensors.
        template: the stock kernel's call of its op, if it is known (:meth:`set_template`).
        replay: the template bound to this kernel.
    """

    shape: Shape
    kernel: Any
    names: Sequence[str]
    words: int
    scales: int
    layer: weakref.ref[torch.nn.Module]
    starts: Starts = field(default_factory=Starts)
    routes: tuple[Route, ...] = ()
    gemms: tuple[GemmName, ...] = ("vllm",)
    humming: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    eight_bit: EightBitKernel | None = None
    moved: bool = False
    layers: int = 0
    served: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    times: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    template: Template | None = None
    replay: Replay | None = None
    _cuts: dict[tuple[int, int, int], bool] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether the stock kernel reads words and scales, in this order, and no other tensor."""
        return (self.words, self.scales, len(self.names)) == (0, 1, 2)

    def set_template(self, template: Template | None) -> None:
        """Call the stock kernel's op by a template from now on; None leaves it to the kernel itself."""
        self.template = template
        self.replay = None if template is None else template.bound(self.kernel)

    def takes(self, route: Route) -> bool:
        """Whether any number of tokens goes by a route."""
        return route in self.routes and getattr(self.starts, route) is not None

    def route_for(self, tokens: int, *, eight_bit: bool = True) -> Route | None:
        """Choose the route of a call; None is the stock kernel. Without ``eight_bit`` activations keep 16 bits."""
        for route in self.routes:
            start = getattr(self.starts, route)
            if start is not None and tokens >= start and (eight_bit or route not in EIGHT_BIT):
                return route
        return None

    def way_for(self, tokens: int, *, eight_bit: bool = True) -> Way:
        """Choose what is fastest on the GPU for so many tokens: a route, Humming's kernel or the stock one."""
        return self.route_for(tokens, eight_bit=eight_bit) or self.base_for(tokens)

    def cuts(self, route: Route, tokens: int, first: int) -> bool:
        """Whether a call is cut in two: its ``first`` rows with 16 bits, the others by ``route`` with 8."""
        start = getattr(self.starts, route)
        key = tokens, first, start
        if key not in self._cuts:
            # As many steps as any load repeats; a call of each layer asks again.
            if len(self._cuts) > _CUTS:
                self._cuts.clear()
            ways = self.way_for(tokens, eight_bit=False), self.way_for(first, eight_bit=False), route
            self._cuts[key] = pays(tokens, first, start, *(self.times.get(way) for way in ways))
        return self._cuts[key]

    def base_for(self, tokens: int) -> Way:
        """Choose between the two kernels that read the packed weight."""
        if self.humming is not None:
            for first, last in self.starts.humming:
                if first <= tokens and (last is None or tokens <= last):
                    return "humming"
        return "stock"

    def weight(self, tensors: Sequence[torch.Tensor], fp8_scales: torch.Tensor | None) -> Weight:
        """Pick the packed weight from a layer's tensors."""
        return Weight(tensors[self.words], tensors[self.scales], fp8_scales)

    def stock(
        self, x: torch.Tensor, tensors: Sequence[torch.Tensor], bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Multiply by vLLM's kernel, for a layer with these tensors: ``[m, n]``."""
        replay = self.replay
        # Recorded with contiguous x: a kernel may copy another one first.
        if replay is not None and bias is None and x.is_contiguous():
            return replay(x, tensors)
        return self.by_vllm(x, tensors, bias)

    def by_vllm(
        self, x: torch.Tensor, tensors: Sequence[torch.Tensor], bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Do the same through vLLM's own Python, never by a replay."""
        return self.kernel.apply_weights(_StandIn(self, tensors), x, bias)

    def run(
        self,
        way: Route | Literal["humming"],
        x: torch.Tensor,
        weight: Weight,
        gemm: GemmName | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply by one way, whatever the number of tokens; ``fp8`` by its best GEMM, or by ``gemm``.

        ``out`` is for 8 bits alone: contiguous ``[m, n]`` to write the result to.
        """
        if way == "exact":
            return exact(x, weight, self.shape)
        if way == "humming":
            assert self.humming is not None
            return self.humming(x, weight.words, weight.scales)
        if way == "a8":
            assert self.eight_bit is not None
            return self.eight_bit(x, weight.words, weight.scales, out)
        return fp8(x, weight, self.shape, gemm or self.starts.fp8_gemm, out)


class _StandIn:
    """Passed to vLLM's kernel in place of the layer: the op's tensors, and the rest from one real layer."""

    def __init__(self, linear: Linear, tensors: Sequence[torch.Tensor]) -> None:
        # Looked up before: an attribute of a module takes more than a microsecond.
        self.__dict__.update(linear.attributes)
        self.__dict__.update(zip(linear.names, tensors, strict=True))
        self._linear = linear

    def __getattr__(self, name: str) -> Any:
        layer = self._linear.layer()
        if layer is None:
            raise AttributeError(name)
        value = getattr(layer, name)
        # A parameter of vLLM's holds its layer by its loader, and so the whole model.
        if not hasattr(value, "weight_loader"):
            self._linear.attributes[name] = value
        return value


_table: dict[str, Linear] = {}


def put(linear: Linear, key: str | None = None) -> Linear:
    """Enter a linear under its shape's key, or under ``key``, which ops are then called with."""
    _table[linear.shape.key if key is None else key] = linear
    return linear


def get(key: str) -> Linear | None:
    """Look up an entry; None if there is none."""
    return _table.get(key)


def linears() -> list[Linear]:
    """List all entries, sorted by key."""
    return [_table[key] for key in sorted(_table)]


def clear() -> None:
    """Empty the table, drop what waits for the next call, and forget the host's pace and the guard's findings."""
    _table.clear()
    _on_first_call.clear()
    _pace[:] = [Pace()]
    _guard[:] = [Guard()]


def at_next_call(callback: Callable[[], None]) -> None:
    """Call ``callback`` once, when an op runs next. One that is waiting already is not entered twice."""
    if callback not in _on_first_call:
        _on_first_call.append(callback)


@contextmanager
def trial() -> Iterator[None]:
    """Try a layer out while others are still to be loaded: no call inside counts as the next one."""
    waiting = _on_first_call.copy()
    _on_first_call.clear()
    try:
        yield
    finally:
        _on_first_call[:] = waiting


def pace() -> Pace:
    """Return the host's pace with the models in the table."""
    return _pace[-1]


def guard() -> Guard:
    """Return what watches the layers in the table that may take int8."""
    return _guard[-1]


class _Choice(NamedTuple):
    """What serves a call.

    Attributes:
        linear: its entry.
        way: the fastest on the GPU, if the host keeps up with it.
        first: how many of the first rows a way with 16 bits serves instead.
        prompts: number of the first row that the guard is to see; -1: it is to see none.
    """

    linear: Linear
    way: Way
    first: int = 0
    prompts: int = -1


def _chosen(key: str, x: torch.Tensor, words: torch.Tensor, has_scales: bool) -> _Choice:
    """Look up what serves a call of a layer with these words; ``has_scales``: whether it has FP8 scales."""
    while _on_first_call:
        _on_first_call.pop()()
    linear, tokens, host = _table[key], x.shape[0], _pace[-1]
    if host.watching:
        host.saw(key, tokens, _with_requests)
    eight_bit = has_scales or linear.eight_bit is not None
    route, first, prompts = linear.route_for(tokens, eight_bit=eight_bit), 0, -1
    if route in EIGHT_BIT:
        first = tokens if _recorded(x) else before_prompts(tokens)
        keeps = first == tokens
        if not keeps and route == "a8":
            if _guard[-1].watches(words) and _in_a_step():
                keeps, prompts = True, first
            else:
                keeps = _guard[-1].keeps(words)
        if keeps or (first and not (tokens >= host.cut_from and linear.cuts(route, tokens, first))):
            route, first = linear.route_for(tokens, eight_bit=False), 0
    way = route or linear.base_for(tokens)
    if tokens < host.eager_from and way != "stock" and x.is_cuda and not _recorded(x):
        # In place of Machete neither is the stock kernel, and Humming's takes the host no longer than Machete.
        return _Choice(linear, linear.base_for(tokens) if linear.moved else "stock", 0, prompts)
    return _Choice(linear, way, first, prompts)


def _served(linear: Linear, way: Way, tokens: int) -> None:
    linear.served[way] += 1
    linear.rows[way] += tokens


def _in_two(
    linear: Linear,
    way: Way,
    first: int,
    x: torch.Tensor,
    weight: Weight,
    stock: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Multiply the ``first`` rows with 16 bits, the others by a route with 8."""
    assert way != "stock"
    other = linear.way_for(first, eight_bit=False)
    _served(linear, other, first)
    _served(linear, way, x.shape[0] - first)
    out = x.new_empty(x.shape[0], linear.shape.n)
    linear.run(way, x[first:], weight, out=out[first:])
    out[:first] = stock(x[:first]) if other == "stock" else linear.run(other, x[:first], weight)
    return out


def _recorded(x: torch.Tensor) -> bool:
    """Whether a call becomes part of a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()  # type: ignore[no-any-return]


def _with_requests() -> bool:
    """Whether this is a pass with requests, launched kernel by kernel: vLLM's own trials skip attention."""
    return not torch.cuda.is_current_stream_capturing() and _in_a_step()


def _in_a_step() -> bool:
    """Whether this is a pass with requests."""
    from vllm.forward_context import get_forward_context, is_forward_context_available

    return is_forward_context_available() and get_forward_context().attn_metadata is not None


def w4a16_linear(
    x: torch.Tensor,
    tensors: list[torch.Tensor],
    fp8_scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    key: str,
    n: int,
) -> torch.Tensor:
    """Compute ``x @ W + bias`` for x ``[m, k]``: ``[m, n]``.

    Calls with a bias go to the stock kernel, which permutes the bias.
    """
    linear, way, first, prompts = _chosen(key, x, tensors[_table[key].words], fp8_scales is not None)
    weight, stock = linear.weight(tensors, fp8_scales), partial(linear.stock, tensors=tensors)
    if bias is not None:
        _served(linear, "stock", x.shape[0])
        return linear.stock(x, tensors, bias)
    if first:
        return _in_two(linear, way, first, x.contiguous(), weight, stock)
    _served(linear, way, x.shape[0])
    out = stock(x) if way == "stock" else linear.run(way, x.contiguous(), weight)
    if prompts >= 0:
        _guard[-1].saw(weight.words, x[prompts:], out[prompts:], partial(linear.run, "a8", weight=weight))
    return out


def w4a16_plain(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    fp8_scales: torch.Tensor | None,
    key: str,
    n: int,
) -> torch.Tensor:
    """Do the same for a :attr:`Linear.plain` linear without a bias."""
    linear, way, first, prompts = _chosen(key, x, words, fp8_scales is not None)
    weight = Weight(words, scales, fp8_scales)
    if first:
        stock = partial(linear.stock, tensors=(words, scales))
        return _in_two(linear, way, first, x.contiguous(), weight, stock)
    _served(linear, way, x.shape[0])
    out = linear.stock(x, (words, scales)) if way == "stock" else linear.run(way, x.contiguous(), weight)
    if prompts >= 0:
        _guard[-1].saw(words, x[prompts:], out[prompts:], partial(linear.run, "a8", weight=weight))
    return out


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
    """Return ``w4a16_linear``, registering it with torch the first time."""
    return _registered(OP, w4a16_linear, _shape_of_result)


def plain_op() -> Callable[..., torch.Tensor]:
    """Return ``w4a16_plain``, likewise."""
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
