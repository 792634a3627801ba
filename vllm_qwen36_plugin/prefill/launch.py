"""How a kernel that Triton has compiled is launched again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton


def launcher(compiled: Any, constants: tuple[Any, ...]) -> Callable[..., None]:
    """Launches on a device's current stream: ``(programs along x, along y, device index, *arguments)``.

    Triton's own look-up takes 60 µs a launch on the host of an H100 (Triton 3.6); a pass through 64 layers has some
    800 of ours. Left out besides: a closure, the device and hooks of profilers. Inductor launches its kernels by
    the same call.

    Args:
        compiled: what a launch returned; has ``function`` where it was for a GPU.
        constants: values of its ``constexpr`` parameters, which follow the others.
    """
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    stream_of = triton.runtime.driver.active.get_current_stream

    def launch(x: int, y: int, device: int, *arguments: Any) -> None:
        run(x, y, 1, stream_of(device), function, metadata, None, None, None, *arguments, *constants)

    return launch
