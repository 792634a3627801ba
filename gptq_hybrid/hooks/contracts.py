"""Plain data that plugins contribute: calibration sources and GPU profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CalibrationSource:
    """A named source of calibration rows.

    Attributes:
        name: for people; error messages list it.
        matches: whether a value of ``--calibration`` belongs to this source. It is called for every value, so it
            should look at the text and at most at the local disk.
        load: takes that value, the largest number of rows to return, and a seed that decides their order. A row
            is ``{"messages": [{"role", "content"}, …]}`` or ``{"text": …}``; ``domain`` and ``licence`` are
            optional. A lazy iterable is read only as far as needed.
        describe: what the calibration manifest records about a value, as a mapping for JSON: the commit of a
            data set, its licence, the SHA-256 of a file. It is called after ``load`` and must hold no path. None
            records nothing.
    """

    name: str
    matches: Callable[[str], bool]
    load: Callable[[str, int, int], Iterable[dict[str, Any]]]
    describe: Callable[[str], dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class GpuProfile:
    """A GPU model. Its memory decides the flags of memory that ``vllm serve`` should get for a checkpoint.

    Attributes:
        name: for people.
        device_names: parts of the name that the driver reports; any of them identifies the model.
        compute_capability: such as ``(8, 9)`` for Ada.
        memory_gib: memory of the card in GiB, as the driver shows it.
        serve_flags: further arguments of ``vllm serve``; one that is given here goes before the computed one.
        source: where all this comes from, ``measured: …`` or ``derived: …``.
        bandwidth: of its memory, in bytes a second; 0 if unknown.
        dense: 16-bit tensor operations a second, with FP32 accumulation and no sparsity; 0 if unknown.
    """

    name: str
    device_names: tuple[str, ...]
    compute_capability: tuple[int, int]
    memory_gib: float
    serve_flags: tuple[str, ...]
    source: str
    bandwidth: float = 0.0
    dense: float = 0.0
