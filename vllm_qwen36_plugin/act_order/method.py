"""The linear method: vLLM's own on rows sorted by ``g_idx``, with the input permuted to match."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from gptq_hybrid.packing import natural_g_idx
from vllm_qwen36_plugin.errors import ActOrderError
from vllm_qwen36_plugin.upstream.gptq import stock_gptq, stock_serves_act_order
from vllm_qwen36_plugin.upstream.tensor_parallel import gathered
from vllm_qwen36_plugin.upstream.vllm_config import load_format

from . import claim
from .shards import halves_of_rank
from .siblings import Siblings
from .sorting import permute_halves, row_order, sort_rows
from .split import SplitRows, narrowed

_StockMethod = stock_gptq()[1]
_PRODUCER, _CONSUMER = "gate_up_proj", "down_proj"
# The norm before in_proj_qkvz is read by in_proj_ba too, in natural order: there the gather is a kernel of its own.
_BEHIND_A_NORM = frozenset({"qkv_proj", "gate_up_proj"})
_NOT_LOADED = -1


def initial_g_idx(rows: int, group_size: int) -> torch.Tensor:
    """Return the ``g_idx`` of a dummy load, which has none to load: natural order, int32 ``[rows]``."""
    return natural_g_idx(rows, group_size)


class GroupIndexLoader:
    """Loads the ``g_idx`` of a layer: once for each shard of a fused layer. The shards must agree.

    Rows are not split here, whatever the parallelism: a group's number means nothing without all of them.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.first: torch.Tensor | None = None
        # Set once the rows are sorted.
        self.closed = False
        # vLLM's reload of weights reads it.
        self.__name__ = "load_group_index"

    def __call__(self, param: torch.nn.Parameter, loaded: torch.Tensor, *_: Any, **__: Any) -> None:
        """Take one shard's ``g_idx``.

        Raises:
            ActOrderError: it has another length, differs from that of a shard before it, or arrives in a running
                engine. There layers are finished one by one, and `gate_up_proj` may or may not have taken over the
                order of `down_proj` yet.
        """
        if self.closed:
            raise ActOrderError(
                f"{self.prefix}: a checkpoint in act order cannot be loaded into a running engine (reload_weights, "
                "or waking from sleep level 2); start the engine again"
            )
        if loaded.shape != param.shape:
            raise ActOrderError(
                f"{self.prefix}: g_idx has {loaded.numel()} entries for {param.numel()} input rows; "
                "fetch the checkpoint again"
            )
        values = loaded.to("cpu", torch.int32, copy=True)
        if self.first is not None and not torch.equal(self.first, values):
            count = int((self.first != values).sum())
            raise ActOrderError(
                f"{self.prefix}: its parts differ in g_idx ({count} of {len(values)} rows), but vLLM runs them as "
                "one layer with one input; quantize again: qwen36 quantize ORIGINAL TARGET"
            )
        self.first = values
        param.data.copy_(loaded)


class ActOrderLinearMethod(_StockMethod):  # type: ignore[misc, valid-type]
    """Sorts rows on load and permutes the input at run time, by ``layer.act_order``, int32 ``[in_features]``.

    That is None if there is nothing to permute. ``folded``: what produces the input writes it in order.
    """

    quant_config: Any

    def __init__(self, quant_config: Any, prefix: str, siblings: Siblings) -> None:
        super().__init__(quant_config)
        self.prefix = prefix
        self.siblings = siblings
        self.folded = False
        self.split: SplitRows | None = None
        # vLLM's method for rows that are stored otherwise than they were loaded.
        self._inner: Any = None
        self._dummy = self._lora = False
        self._vllm_config: Any = None

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Create vLLM's parameters, and ``g_idx``, int32 ``[input_size]``: that of all ranks' rows."""
        group_size = self.quant_config.group_size
        self.group_size = group_size
        if input_size != input_size_per_partition and group_size != -1:
            self.split = SplitRows(self.prefix, input_size, input_size_per_partition, group_size)
            self.quant_config = narrowed(self.quant_config, self.split.block)
        super().create_weights(
            layer,
            input_size_per_partition,
            output_partition_sizes,
            input_size,
            output_size,
            params_dtype,
            **extra_weight_attrs,
        )
        if self.split is not None:
            self.split.widen(layer)
        g_idx = torch.nn.Parameter(
            torch.full((input_size,), _NOT_LOADED, dtype=torch.int32), requires_grad=False
        )
        vars(g_idx)["weight_loader"] = GroupIndexLoader(self.prefix)
        layer.register_parameter("g_idx", g_idx)
        layer.register_buffer("act_order", None, persistent=False)
        self.rows = input_size
        self.output_sizes = list(output_partition_sizes)
        self._dummy, self._lora = _is_dummy_load(), _has_lora()
        self._vllm_config = _current_config()

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Sort the rows, then let vLLM's kernel repack them.

        Raises:
            ActOrderError: there is no ``g_idx``, or it is no act order.
        """
        device = layer.qweight.device
        # Not with LoRA, see `_order_output`.
        if not self._lora and _norms_fold(device):
            self.siblings.fold_norms_once(device)
        order = self.order_for(layer)
        loader = getattr(layer.g_idx, "weight_loader", None)
        if isinstance(loader, GroupIndexLoader):
            loader.closed = True
        if self.split is not None:
            order = self._store_part(layer, self.split, order)
        elif order is not None:
            sort_rows(layer.qweight.data, order, self.quant_config.weight_bits)
        self._order_output(layer)
        if stock_serves_act_order():
            # vLLM up to 0.29 has a parameter of this name, and gives it to kernels that do not look at it.
            layer.g_idx = torch.nn.Parameter(
                torch.empty(0, dtype=torch.int32, device=device), requires_grad=False
            )
        else:
            del layer.g_idx
        if self._inner is not None:
            self._inner.process_weights_after_loading(layer)
        else:
            super().process_weights_after_loading(layer)
        if order is not None and not self.folded:
            self._store_order(layer, order.to(device))

    def _store_part(
        self, layer: torch.nn.Module, split: SplitRows, order: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Keep what this rank needs of split rows; return the index to permute its input by, int32 ``[stored]``."""
        g_idx = self._g_idx(layer)
        if order is None or self.folded:
            split.keep_in_place(layer, g_idx, order)
            return None
        bits = self.quant_config.weight_bits
        choices = self.siblings.stored.choices(split, bits, g_idx, self._orders_like_this(split, bits))
        with _building(self._vllm_config):
            self._inner, held = split.rearrange(layer, g_idx, choices, partial(self._make_stored, layer))
        self.siblings.stored.say(split, held, self._vllm_config)
        return held.order

    def _orders_like_this(self, split: SplitRows, bits: int) -> Iterator[torch.Tensor]:
        """Give ``g_idx`` of the model's linears of this shape that will permute their inputs."""
        for layer in self.siblings.layers():
            method = layer.quant_method
            if not isinstance(method, ActOrderLinearMethod) or method.split is None or method.folded:
                continue
            other = method.split
            same = (other.rows, other.rows_on_rank, other.group_size, method.quant_config.weight_bits)
            if same == (split.rows, split.rows_on_rank, split.group_size, bits) and method.pending(layer):
                yield method._g_idx(layer)

    def _make_stored(self, layer: Any, block: int, stored: int, made: torch.nn.Module) -> Any:
        """Make vLLM's method for ``stored`` rows in blocks, and its parameters in ``made``."""
        inner = _StockMethod(narrowed(self.quant_config, block))
        inner.input_dtype = self.input_dtype
        like, outputs = layer.scales, self.output_sizes
        with torch.device(like.device):
            inner.create_weights(
                made, stored, outputs, stored, sum(outputs), like.dtype, weight_loader=_refuse_to_load
            )
        return inner

    @staticmethod
    def pending(layer: torch.nn.Module) -> bool:
        """Whether the rows of ``layer`` are not sorted yet."""
        loader = getattr(getattr(layer, "g_idx", None), "weight_loader", None)
        return isinstance(loader, GroupIndexLoader) and not loader.closed

    def order_for(self, layer: torch.nn.Module) -> torch.Tensor | None:
        """Return the order to sort the rows of ``layer`` into, int32 ``[input_size]``; None if they lie in it.

        Raises:
            ActOrderError: as `process_weights_after_loading`.
        """
        try:
            return row_order(self._g_idx(layer), self.group_size)
        except ValueError as error:
            raise ActOrderError(
                f"{self.prefix}.g_idx is no act order: {error}; fetch the checkpoint again"
            ) from error

    def _g_idx(self, layer: torch.nn.Module) -> torch.Tensor:
        g_idx: torch.Tensor = layer.g_idx.data.cpu()
        if not (g_idx == _NOT_LOADED).all():
            return g_idx
        if not self._dummy:
            raise ActOrderError(
                f"{self.prefix}: the checkpoint has no g_idx for it, although desc_act is true"
            )
        return initial_g_idx(self.rows, self.group_size)

    def _order_output(self, layer: torch.nn.Module) -> None:
        """If this is `gate_up_proj`, permute its columns so that its output is in the order of `down_proj`'s rows.

        Exact, as silu(gate) * up is elementwise. Not with LoRA, whose matrices are in the original order, nor for a
        `down_proj` that is finished already.
        """
        parent, _, name = self.prefix.rpartition(".")
        if name != _PRODUCER or self._lora or len(self.output_sizes) != 2:
            return
        down = self.siblings.find(f"{parent}.{_CONSUMER}")
        method = getattr(down, "quant_method", None)
        if down is None or not isinstance(method, ActOrderLinearMethod) or not method.pending(down):
            return
        order, split = method.order_for(down), method.split
        rows = self.output_sizes[0] * (1 if split is None else split.rank.size)
        if (
            order is None
            or method.folded
            or rows != len(order)
            or self.output_sizes[1] != self.output_sizes[0]
        ):
            return
        for tensor in (layer.qweight.data, layer.scales.data):
            if split is None:
                permute_halves(tensor, order)
            else:
                # A rank's rows of down_proj are whole groups then, wherever they were.
                tensor.copy_(halves_of_rank(gathered(tensor, 1), order, *split.rank))
        method.folded = True

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Permute ``x`` ``[..., in_features]`` (of this rank) and multiply.

        By plain indexing, which torch.compile fuses into what produces ``x``.
        """
        if layer.act_order is not None:
            # Unchecked, as it is a permutation: the check of every index took 0.1 to 0.7 µs a call, in a
            # kernel of 3.
            x = torch.ops.aten._unsafe_index.Tensor(x, [None] * (x.dim() - 1) + [layer.act_order])
        if self._inner is not None:
            return self._inner.apply(layer, x, bias)
        return super().apply(layer, x, bias)

    def _store_order(self, layer: torch.nn.Module, order: torch.Tensor) -> None:
        if layer.act_order is None:
            # Behind a norm, every second number of a buffer: the load of the order then has the layout of the
            # loads that it indexes. 3.3 -> 1.7 µs at qkv, 3.8 -> 2.2 at gate_up; elsewhere it loses (H100, torch
            # 2.11, M = 1).
            step = 2 if self.prefix.rpartition(".")[2] in _BEHIND_A_NORM else 1
            layer.act_order = order.new_zeros(len(order), step)[:, 0]
        # In place on a second load: CUDA graphs hold the address.
        layer.act_order.copy_(order)


def _norms_fold(device: torch.device) -> bool:
    """Whether norms are to write in order on ``device``."""
    if device.type == "cuda":
        return claim.FOLD_NORMS != "never" and importlib.util.find_spec("triton") is not None
    return claim.FOLD_NORMS == "always"


def _is_dummy_load() -> bool:
    """Whether weights are made up, and no ``g_idx`` with them."""
    config = _current_config()
    return config is not None and load_format(config.load_config) == "dummy"


def _has_lora() -> bool:
    return getattr(_current_config(), "lora_config", None) is not None


def _current_config() -> Any:
    from vllm.config import get_current_vllm_config_or_none

    return get_current_vllm_config_or_none()


def _building(vllm_config: Any) -> AbstractContextManager[Any]:
    """Choose kernels as while the model was built: vLLM looks at its current config."""
    from vllm.config import set_current_vllm_config

    return nullcontext() if vllm_config is None else set_current_vllm_config(vllm_config)


def _refuse_to_load(*_: Any, **__: Any) -> None:
    raise RuntimeError("a weight made here is not loaded from a file")
