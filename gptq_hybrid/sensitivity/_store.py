"""Finished variants on disk, so that an interrupted scan does not repeat them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptq_hybrid.checkpoint import read_json_object
from gptq_hybrid.common.atomic import write_json_atomic


class ResultStore:
    """Arrays ``[documents]`` by name for each variant, in one small JSON file per variant.

    Args:
        folder: holds the scans; this one gets a folder of its own in it.
        settings: every setting that affects the numbers: checkpoint, documents, arithmetic, versions.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()
        self.folder = folder / f"scan-{key[:24]}"

    def load(self, variant: str) -> dict[str, NDArray[np.float64]] | None:
        """Return what was saved for ``variant``, bit for bit; None if nothing was.

        Raises:
            CheckpointError: the file is not a JSON object.
        """
        path = self._path(variant)
        if not path.is_file():
            return None
        return {name: np.array(values, dtype=np.float64) for name, values in read_json_object(path).items()}

    def save(self, variant: str, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self._path(variant), {name: values.tolist() for name, values in arrays.items()})

    def _path(self, variant: str) -> Path:
        return self.folder / f"{variant}.json"
