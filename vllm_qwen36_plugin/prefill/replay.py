"""A stock kernel's one call of its op, made again without vLLM's Python around it.

In a graph that vLLM compiles without this plugin, that Python is traced away and its op called straight. Behind
our op it would run at every call, and where the host is the limit it would be what a pass waits for. So what it
calls is noted while weights are loaded, for some numbers of rows; where that is one op, and its arguments are the
rows, a layer's tensors and what never changes, the op is called with those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Python around a kernel can tell numbers of rows apart: few, more than a tile, and as many as a pass may have.
ROWS = (1, 17, 129, 2048)
Replay = Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
# Of what an op is given and no number of rows changes.
_CONSTANTS = (type(None), bool, int, float, str, torch.dtype)


class NotReplayable(Exception):  # noqa: N818 - no error: vLLM's own Python is called then, as ever
    """Why a stock kernel is more than one call with the arguments that a replay has."""


@dataclass(frozen=True, slots=True)
class _From:
    """Where an argument comes from: the ``rows``, their ``count``, a ``tensor`` or the kernel's ``state``."""

    source: str
    which: Any = None


@dataclass(frozen=True, slots=True)
class Template:
    """An op and its arguments: constants, and `_From` in the others' place.

    Holds no tensor of a layer or a kernel but copies of empty ones, so layers of a shape share it, of one model
    and of the next.
    """

    op: Any
    arguments: tuple[Any, ...]

    def bound(self, kernel: Any) -> Replay:
        """The call for layers that this stock kernel serves.

        Its state is looked up now: a stock kernel replaces it only in ``process_weights_after_loading``, and
        what was bound before is bound anew after that.
        """
        given = list(self.arguments)
        rows: list[int] = []
        counts: list[int] = []
        tensors: list[tuple[int, int]] = []
        for place, argument in enumerate(self.arguments):
            if not isinstance(argument, _From):
                continue
            if argument.source == "state":
                given[place] = getattr(kernel, argument.which)
            elif argument.source == "tensor":
                tensors.append((place, argument.which))
            else:
                (rows if argument.source == "rows" else counts).append(place)
        op, (at,) = self.op, rows

        def replay(x: torch.Tensor, of_layer: Sequence[torch.Tensor]) -> torch.Tensor:
            arguments = given.copy()
            arguments[at] = x
            for place, which in tensors:
                arguments[place] = of_layer[which]
            for place in counts:
                arguments[place] = x.shape[0]
            return op(*arguments)

        return replay


def record(
    call: Callable[[torch.Tensor], torch.Tensor],
    kernel: Any,
    tensors: Sequence[torch.Tensor],
    rows: Sequence[torch.Tensor],
) -> Template:
    """What ``call`` does for each ``x`` of ``rows``, which are contiguous, ``[m, k]``, and of unlike m.

    Args:
        call: a stock kernel's ``apply_weights`` for one layer, without a bias.
        kernel: the stock kernel.
        tensors: those of the layer that a replay is given too.

    Raises:
        NotReplayable: it is not one op of these, of its own state, and of constants.
    """
    if len({len(x) for x in rows}) < 2:
        raise ValueError("one number of rows does not show which argument it is")
    calls = [_call(call, kernel, tensors, x) for x in rows]
    op, first = calls[0]
    if any(other is not op or len(given) != len(first) for other, given in calls):
        raise NotReplayable("it calls one op for some numbers of rows and another for others")
    merged = []
    for place, values in enumerate(zip(*(given for _, given in calls), strict=True)):
        if _all_one(values):
            merged.append(values[0])
        elif all(type(value) is int and value == len(x) for value, x in zip(values, rows, strict=True)):
            merged.append(_From("count"))
        else:
            raise NotReplayable(f"argument {place} of {op} depends on the number of rows: {values}")
    if sum(isinstance(told, _From) and told.source == "rows" for told in merged) != 1:
        raise NotReplayable(f"{op} is not given the rows as they are, once")
    return Template(op, tuple(merged))


class _Log(TorchDispatchMode):  # type: ignore[misc]
    """Every op, with its arguments and its result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs, result))
        return result


def _call(
    call: Callable[[torch.Tensor], torch.Tensor],
    kernel: Any,
    tensors: Sequence[torch.Tensor],
    x: torch.Tensor,
) -> tuple[Any, list[Any]]:
    """The one op that is no view, and its arguments in the terms of `Template`."""
    with _Log() as log:
        returned = call(x)
    found = [one for one in log.calls if not _is_view(*one)]
    if len(found) != 1:
        names = [str(op) for op, *_ in found[:4]] + ["…"] * (len(found) > 4)
        raise NotReplayable(f"it calls {', '.join(names) or 'no op'}")
    ((op, arguments, named, result),) = found
    if named:
        raise NotReplayable(f"{op} takes {', '.join(named)} by name")
    if not isinstance(result, torch.Tensor) or not same_tensor(returned, result):
        raise NotReplayable(f"what {op} returns is not what the kernel returns")
    state = {name: value for name, value in vars(kernel).items() if isinstance(value, torch.Tensor)}
    return op, [_told(argument, op, x, tensors, state) for argument in arguments]


def _is_view(op: Any, arguments: Sequence[Any], named: Any, result: Any) -> bool:
    """Whether an op does nothing but look at its first argument in another way."""
    if op._schema.is_mutable or not isinstance(result, torch.Tensor):
        return False
    of = arguments[0] if arguments else None
    return isinstance(of, torch.Tensor) and result.numel() > 0 and _storage(result) == _storage(of)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()  # type: ignore[no-any-return]


def same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two are one, or views of the same elements in the same order."""
    if a is b:
        return True
    return a.numel() > 0 and (a.data_ptr(), a.dtype, a.shape, a.stride()) == (
        b.data_ptr(),
        b.dtype,
        b.shape,
        b.stride(),
    )


def _told(
    argument: Any, op: Any, x: torch.Tensor, tensors: Sequence[torch.Tensor], state: dict[str, torch.Tensor]
) -> Any:
    if not isinstance(argument, torch.Tensor):
        if type(argument) not in _CONSTANTS:
            raise NotReplayable(f"{op} is given a {type(argument).__name__}")
        return argument
    if same_tensor(argument, x):
        return _From("rows")
    for which, tensor in enumerate(tensors):
        if same_tensor(argument, tensor):
            return _From("tensor", which)
    for name, tensor in state.items():
        if argument is tensor:
            return _From("state", name)
    if argument.numel():
        raise NotReplayable(f"{op} is given a tensor that is neither the layer's nor the kernel's")
    # Where there is nothing to be given. A copy: a parameter can hold its layer, and with it the model.
    return torch.empty(argument.shape, dtype=argument.dtype, device=argument.device)


def _all_one(values: Sequence[Any]) -> bool:
    first = values[0]
    if isinstance(first, torch.Tensor):
        # Empty ones, by `_told`.
        return all(
            isinstance(value, torch.Tensor)
            and (value.shape, value.dtype, value.device) == (first.shape, first.dtype, first.device)
            for value in values
        )
    return all(type(value) is type(first) and value == first for value in values)
