"""A log and what stands out in it, as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from ._flags import FLAGS, flags_of, outliers
from ._modules import measure_of
from .columns import LossLog

SCHEMA = 1


def as_json(log: LossLog) -> dict[str, Any]:
    """``schema``, ``measure``, ``lacking`` columns, ``counts`` by flag, and ``modules`` with their flags.

    ``of_median`` of a module that is an outlier: its loss over the median of its kind.
    """
    flags, apart = flags_of(log.modules), outliers(log.modules)
    return {
        "schema": SCHEMA,
        "source": log.source,
        "measure": measure_of(log.modules),
        "lacking": list(log.lacking),
        "counts": {flag: sum(flag in found for found in flags.values()) for flag in FLAGS},
        "modules": [
            {**dataclasses.asdict(m), "flags": list(flags[m.name]), "of_median": apart.get(m.name)}
            for m in log.modules
        ],
    }
