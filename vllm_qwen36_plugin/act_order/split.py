"""A linear whose rows are split between ranks: what this rank loads of it, and what it stores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from math import gcd
from typing import Any

import torch

from vllm_qwen36_plugin.errors import ActOrderError
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.start import enter_salt
from vllm_qwen36_plugin.upstream.tensor_parallel import Rank, gathered, rank

from .shards import Rows, arrange, choose_block, take_rows, take_scales

_OF_GROUPS = ("scales", "qzeros")


class WholeLoader:
    """Loads a tensor as the checkpoint has it, the same on every rank."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        # vLLM's reload of weights reads it.
        self.__name__ = "load_whole"

    def __call__(self, param: torch.nn.Parameter, loaded: torch.Tensor, *_: Any, **__: Any) -> None:
        """Copy.

        Raises:
            ActOrderError: another shape.
        """
        if loaded.shape != param.shape:
            raise ActOrderError(
                f"{self.prefix}: a tensor of its groups is {list(loaded.shape)}, and {list(param.shape)} is "
                "expected; fetch the checkpoint again"
            )
        param.data.copy_(loaded)


class SplitRows:
    """What a linear method does where each rank has ``rows_on_rank`` of ``rows`` rows.

    vLLM's parameters are made for groups that lie within a rank. Scales are loaded of all groups instead, as any
    may have rows here; what the rank needs of them is put back once the order is known.
    """

    def __init__(self, prefix: str, rows: int, rows_on_rank: int, group_size: int) -> None:
        self.prefix = prefix
        self.rows, self.rows_on_rank, self.group_size = rows, rows_on_rank, group_size
        # Rows that share their scales in vLLM's parameters: no group's rows there are of two groups.
        self.block = gcd(group_size, rows_on_rank)
        self.rank: Rank = rank()
        self._stock: dict[str, torch.nn.Parameter] = {}

    def widen(self, layer: torch.nn.Module) -> None:
        """Have ``layer`` load the scales and zero points of all groups."""
        groups = -(-self.rows // self.group_size)
        for name in _OF_GROUPS:
            own = getattr(layer, name)
            self._stock[name] = own
            delattr(layer, name)
            whole = torch.nn.Parameter(own.data.new_empty(groups, own.shape[1]), requires_grad=False)
            vars(whole)["weight_loader"] = WholeLoader(self.prefix)
            layer.register_parameter(name, whole)

    def groups_here(self, g_idx: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
        """Return the groups of this rank's rows: those it loaded, or its part of all rows in ``order``."""
        return self.groups_of(self.rank.number, g_idx, order)

    def groups_of(self, number: int, g_idx: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
        """Return the same of another rank."""
        groups = g_idx.cpu() if order is None else g_idx.cpu()[order.cpu().long()]
        return groups[number * self.rows_on_rank : (number + 1) * self.rows_on_rank]

    def keep_in_place(self, layer: torch.nn.Module, g_idx: torch.Tensor, order: torch.Tensor | None) -> None:
        """Keep this rank's part of all rows in ``order`` (None: the checkpoint's), in vLLM's own parameters.

        Its producer writes that part, so nothing is permuted at run time.
        """
        if order is not None:
            bits = self._bits(layer.qweight.data)
            first = self.rank.number * self.rows_on_rank
            mine = order[first : first + self.rows_on_rank]
            layer.qweight.data.copy_(take_rows(gathered(layer.qweight.data, 0), mine, bits))
        groups = self.groups_here(g_idx, order)[:: self.block]
        self._put_back(layer, groups)

    def _bits(self, qweight: torch.Tensor) -> int:
        return 32 * len(qweight) // self.rows_on_rank

    def _put_back(self, layer: torch.nn.Module, groups: torch.Tensor) -> None:
        for name, own in self._stock.items():
            whole = getattr(layer, name).data
            own.data = own.data.to(whole.device)
            own.data.copy_(take_scales(whole, groups))
            delattr(layer, name)
            layer.register_parameter(name, own)

    def rearrange(
        self,
        layer: torch.nn.Module,
        g_idx: torch.Tensor,
        choices: Iterable[tuple[int, int]],
        make: Callable[[int, int, torch.nn.Module], Any],
    ) -> tuple[Any, Rows]:
        """Give ``layer`` this rank's rows sorted by group, each group filled up to whole blocks.

        Args:
            layer: with what was loaded.
            g_idx: of all rows.
            choices: pairs of block and stored rows, the best first; the first with a kernel is taken.
            make: makes vLLM's method for groups of a block and so many rows, and its parameters in a module.

        Returns:
            vLLM's method for the new parameters, which it has not processed yet; and what they hold.

        Raises:
            ActOrderError: vLLM has no kernel for any.
        """
        reasons = []
        for block, stored in choices:
            made = torch.nn.Module()
            try:
                inner = make(block, stored, made)
            except ValueError as error:
                reasons.append(f"blocks of {block}: {error}")
                continue
            held = arrange(self.groups_here(g_idx), block, stored)
            bits = self._bits(layer.qweight.data)
            made.qweight.data.copy_(take_rows(layer.qweight.data, held.places, bits))
            for name in _OF_GROUPS:
                getattr(made, name).data.copy_(take_scales(getattr(layer, name).data, held.groups))
            for name, parameter in list(made.named_parameters()):
                if name in layer._parameters:
                    delattr(layer, name)
                layer.register_parameter(name, parameter)
            return inner, held
        raise ActOrderError(
            f"{self.prefix} is split by rows over {self.rank.size} GPUs, and no kernel of this vLLM takes its act "
            f"order then ({'; '.join(reasons)}). Serve it with --tensor-parallel-size 1, or quantize without "
            "order at run time: qwen36 quantize ORIGINAL TARGET --recipe static-mse"
        )


class StoredRows:
    """How the split linears of one model are stored: those of one shape alike, on all ranks.

    So they share kernels, profiles and compiled graphs.
    """

    def __init__(self) -> None:
        self._choices: dict[tuple[int, int, int, int], list[tuple[int, int]]] = {}

    def choices(
        self, split: SplitRows, bits: int, g_idx: torch.Tensor, others: Iterable[torch.Tensor]
    ) -> list[tuple[int, int]]:
        """Rank pairs of block and stored rows for a linear.

        Args:
            split: the linear's.
            bits: of its weights.
            g_idx: its own.
            others: those of all linears of its shape in the model, of which the first call decides.
        """
        key = (split.rows, split.rows_on_rank, split.group_size, bits)
        known = self._choices.get(key)
        own = _choose(split, bits, [g_idx])
        if known is None:
            known = self._choices[key] = _choose(split, bits, [g_idx, *others])
        fits = dict(own)
        if any(stored < fits[block] for block, stored in known):
            return own
        return known

    def say(self, split: SplitRows, rows: Rows, config: Any) -> None:
        """Log the first linear of a shape, on one rank; enter it into vLLM's key of compiled graphs."""
        shape = f"{split.rows_on_rank} rows as {len(rows.places)} in blocks of {rows.block}"
        if config is not None:
            enter_salt(config, f"act order, {split.rows} rows over {split.rank.size}", shape)
        if split.rank.number == 0 and shape not in _said:
            _said.add(shape)
            more = len(rows.places) / split.rows_on_rank - 1
            logger.info(
                "vllm-qwen36-plugin: act order over %d GPUs: each stores %d rows of %s and its like as %d, "
                "%.0f %% more, so that no group shares a block of %d with another",
                split.rank.size,
                split.rows_on_rank,
                split.prefix.rpartition(".")[2],
                len(rows.places),
                100 * more,
                rows.block,
            )


_said: set[str] = set()


def _choose(split: SplitRows, bits: int, orders: Iterable[torch.Tensor]) -> list[tuple[int, int]]:
    parts = [split.groups_of(number, each) for each in orders for number in range(split.rank.size)]
    return choose_block(parts, split.group_size, bits)


def narrowed(quant_config: Any, group_size: int) -> Any:
    """Copy vLLM's GPTQ config with another group size."""
    if quant_config.group_size == group_size:
        return quant_config
    narrow = copy.copy(quant_config)
    narrow.group_size = group_size
    return narrow
