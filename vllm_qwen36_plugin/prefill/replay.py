"""Repeat a stock kernel's one call of its op, without vLLM's Python around it.

In a graph that vLLM compiles without this plugin, that Python is traced away and the op is called directly.
Behind our op it would run at every call, and a pass would wait for it if the host is the limit. So while weights
are loaded, the ops that the stock kernel calls are recorded for some numbers of tokens. If it is one op, and its
arguments are x, the layer's tensors and constants, that op is called with those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Python around a kernel may treat numbers of tokens differently: few, more than a tile, as many as a pass may have.
TOKENS = (1, 17, 129, 2048)
Replay = Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
# Types of an op's arguments that are taken as constants.
_CONSTANTS = (type(None), bool, int, float, str, torch.dtype)


class NotReplayable(Exception):  # noqa: N818 - no error: vLLM's own Python is called as before
    """The stock kernel does more than one call that a replay could make; the text says what."""


@dataclass(frozen=True, slots=True)
class _From:
    """Source of an argument: ``x``, its number of ``tokens``, a layer's ``tensor`` or the kernel's ``state``."""

    source: str
    which: Any = None


@dataclass(frozen=True, slots=True)
class Template:
    """An op and its arguments: constants, and a ``_From`` in place of each other one.

    It holds no tensor of a layer or a kernel, only copies of empty ones. So all layers of a shape share it, and the
    next model's too.
    """

    op: Any
    arguments: tuple[Any, ...]

    def bound(self, kernel: Any) -> Replay:
        """Make the call for layers that this stock kernel serves.

        The kernel's state is looked up now. A stock kernel replaces it only in ``process_weights_after_loading``,
        and the template is bound again after that.
        """
        template = list(self.arguments)
        x_places: list[int] = []
        count_places: list[int] = []
        tensor_places: list[tuple[int, int]] = []
        for place, argument in enumerate(self.arguments):
            if not isinstance(argument, _From):
                continue
            if argument.source == "state":
                template[place] = getattr(kernel, argument.which)
            elif argument.source == "tensor":
                tensor_places.append((place, argument.which))
            else:
                (x_places if argument.source == "x" else count_places).append(place)
        op, (x_place,) = self.op, x_places

        def replay(x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            arguments = template.copy()
            arguments[x_place] = x
            for place, which in tensor_places:
                arguments[place] = tensors[which]
            for place in count_places:
                arguments[place] = x.shape[0]
            return op(*arguments)

        return replay


def record(
    call: Callable[[torch.Tensor], torch.Tensor],
    kernel: Any,
    tensors: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
) -> Template:
    """Record what ``call`` does for each input.

    Args:
        call: a stock kernel's ``apply_weights`` for one layer, without a bias.
        kernel: the stock kernel.
        tensors: those of the layer that a replay will be given.
        inputs: contiguous ``[m, k]``, of different m.

    Raises:
        NotReplayable: it is not one op of the input, these tensors, the kernel's own state, and constants.
        ValueError: all inputs have the same number of tokens.
    """
    if len({len(x) for x in inputs}) < 2:
        raise ValueError("one number of tokens does not show which argument it is")
    calls = [_single_call(call, kernel, tensors, x) for x in inputs]
    op, first = calls[0]
    if any(other is not op or len(arguments) != len(first) for other, arguments in calls):
        raise NotReplayable("it calls one op for some numbers of tokens and another for others")
    merged = []
    for place, values in enumerate(zip(*(arguments for _, arguments in calls), strict=True)):
        if _all_equal(values):
            merged.append(values[0])
        elif all(type(value) is int and value == len(x) for value, x in zip(values, inputs, strict=True)):
            merged.append(_From("tokens"))
        else:
            raise NotReplayable(f"argument {place} of {op} depends on the number of tokens: {values}")
    if sum(isinstance(argument, _From) and argument.source == "x" for argument in merged) != 1:
        raise NotReplayable(f"{op} does not get x as it is, once")
    return Template(op, tuple(merged))


class _Log(TorchDispatchMode):  # type: ignore[misc]
    """Keeps every op that runs, with its arguments and its result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs, result))
        return result


def _single_call(
    call: Callable[[torch.Tensor], torch.Tensor],
    kernel: Any,
    tensors: Sequence[torch.Tensor],
    x: torch.Tensor,
) -> tuple[Any, list[Any]]:
    """Return the one op that is no view, and its arguments as in a :class:`Template`."""
    with _Log() as log:
        returned = call(x)
    ops = [entry for entry in log.calls if not _is_view(*entry)]
    if len(ops) != 1:
        names = [str(op) for op, *_ in ops[:4]] + ["…"] * (len(ops) > 4)
        raise NotReplayable(f"it calls {', '.join(names) or 'no op'}")
    ((op, arguments, by_name, result),) = ops
    if by_name:
        raise NotReplayable(f"{op} takes {', '.join(by_name)} by name")
    if not isinstance(result, torch.Tensor) or not same_tensor(returned, result):
        raise NotReplayable(f"the kernel returns something else than {op} does")
    state = {name: value for name, value in vars(kernel).items() if isinstance(value, torch.Tensor)}
    return op, [_source(argument, op, x, tensors, state) for argument in arguments]


def _is_view(op: Any, arguments: Sequence[Any], by_name: Any, result: Any) -> bool:
    """Whether an op only makes a view of its first argument."""
    if op._schema.is_mutable or not isinstance(result, torch.Tensor):
        return False
    base = arguments[0] if arguments else None
    return isinstance(base, torch.Tensor) and result.numel() > 0 and _storage(result) == _storage(base)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()  # type: ignore[no-any-return]


def same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are one, or views of the same elements in the same order."""
    if a is b:
        return True
    return a.numel() > 0 and (a.data_ptr(), a.dtype, a.shape, a.stride()) == (
        b.data_ptr(),
        b.dtype,
        b.shape,
        b.stride(),
    )


def _source(
    argument: Any, op: Any, x: torch.Tensor, tensors: Sequence[torch.Tensor], state: dict[str, torch.Tensor]
) -> Any:
    if not isinstance(argument, torch.Tensor):
        if type(argument) not in _CONSTANTS:
            raise NotReplayable(f"{op} takes a {type(argument).__name__}")
        return argument
    if same_tensor(argument, x):
        return _From("x")
    for which, tensor in enumerate(tensors):
        if same_tensor(argument, tensor):
            return _From("tensor", which)
    for name, tensor in state.items():
        if argument is tensor:
            return _From("state", name)
    if argument.numel():
        raise NotReplayable(f"{op} takes a tensor that is neither the layer's nor the kernel's")
    # An empty tensor stands for none. A copy, because a parameter can hold its layer and so the model.
    return torch.empty(argument.shape, dtype=argument.dtype, device=argument.device)


def _all_equal(values: Sequence[Any]) -> bool:
    first = values[0]
    if isinstance(first, torch.Tensor):
        # Only empty tensors get here.
        return all(
            isinstance(value, torch.Tensor)
            and (value.shape, value.dtype, value.device) == (first.shape, first.dtype, first.device)
            for value in values
        )
    return all(type(value) is type(first) and value == first for value in values)
