"""What the GPUs of this machine do while requests run: memory, clocks, power; asked of NVIDIA's driver."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gptq_hybrid.common.machine import chosen_gpus

_QUERY = {
    "memory_mib": "memory.used",
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "most_sm_mhz": "clocks.max.sm",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}
_SECONDS, _PAUSE = 20.0, 2.0


def look(smi: str) -> list[dict[str, float]]:
    """Ask the driver once; a list of what each GPU does, empty if it does not answer."""
    command = [
        smi,
        *(chosen_gpus() or ()),
        f"--query-gpu={','.join(_QUERY.values())}",
        "--format=csv,noheader,nounits",
    ]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [parsed for line in run.stdout.splitlines() if (parsed := parse(line))]


def parse(line: str) -> dict[str, float]:
    """Read a line of the driver; what it says ``[N/A]`` of is left out."""
    values: dict[str, float] = {}
    for name, text in zip(_QUERY, line.split(","), strict=False):
        try:
            values[name] = float(text)
        except ValueError:
            continue
    return values


class Watch:
    """Looks every two seconds, and keeps the most of each value and the mean of the clocks and the power."""

    def __init__(self) -> None:
        self.looks: list[list[dict[str, float]]] = []

    def result(self) -> tuple[dict[str, Any], ...]:
        """Return for each GPU: most memory and temperature, mean clocks and power."""
        cards = max(map(len, self.looks), default=0)
        result = []
        for card in range(cards):
            seen = [look[card] for look in self.looks if card < len(look)]
            values: dict[str, Any] = {}
            for name in _QUERY:
                found = [each[name] for each in seen if name in each]
                if found:
                    mean = name in ("sm_mhz", "memory_mhz", "power_w")
                    values[name] = round(sum(found) / len(found), 1) if mean else max(found)
            result.append(values)
        return tuple(result)


@contextmanager
def watching(here: bool) -> Iterator[Watch]:
    """Watch this machine's GPUs until the block ends; not where the server is elsewhere, or there is no driver."""
    watch = Watch()
    smi = shutil.which("nvidia-smi") if here else None
    if smi is None:
        yield watch
        return
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            if found := look(smi):
                watch.looks.append(found)
            ended.wait(_PAUSE)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join(_SECONDS)
