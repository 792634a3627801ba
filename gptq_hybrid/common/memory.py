"""How much main memory is free."""

from __future__ import annotations

import os
from pathlib import Path


def free_memory() -> int:
    """Bytes of main memory this process can still take: the system's figure or the cgroup's, whichever is less."""
    limits = []
    info = Path("/proc/meminfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        if "MemAvailable" in fields:
            limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        limits.append(max(0, int(limit.read_text()) - int(used.read_text())))
    return min(limits) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
