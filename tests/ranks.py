"""Ranks of tensor parallelism as threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from vllm_qwen36_plugin.upstream.tensor_parallel import Rank


class Ranks:
    """Threads that stand for ranks: each knows its number, and they wait for each other where they gather."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._own = threading.local()
        self._barrier = threading.Barrier(size, timeout=60)
        self._given: list[Any] = [None] * size

    def rank(self) -> Rank:
        return Rank(self._own.number, self.size)

    def told(self, mine: Any) -> list[Any]:
        self._given[self._own.number] = mine
        self._barrier.wait()
        everyone = list(self._given)
        self._barrier.wait()
        return everyone

    def gathered(self, part: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat(self.told(part.clone()), dim=dim)

    def gathered_logits(self, part: torch.Tensor) -> torch.Tensor:
        return self.gathered(part, -1)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        def one(number: int) -> Any:
            self._own.number = number
            return work(number)

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(one, range(self.size)))
