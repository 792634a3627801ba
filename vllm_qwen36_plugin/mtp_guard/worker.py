"""The draft class with a check after loading, registered in place of vLLM's own under the same name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from vllm.model_executor.models.qwen3_5_mtp import Qwen3_5MTP as _StockQwen3_5MTP

from vllm_qwen36_plugin.errors import MtpHeadError
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.ranks import first_rank, on_each_rank
from vllm_qwen36_plugin.report import note
from vllm_qwen36_plugin.upstream.tensor_parallel import rank, told
from vllm_qwen36_plugin.upstream.vllm_config import (
    draft_load_config,
    draft_weights_are_tracked,
    load_format,
    quantization_config,
)

from .front import head_refusal
from .head import (
    Arrival,
    bad_values,
    cast_raw,
    checkpoint_name,
    expected_tensors,
    head_parameters,
    misshapen,
    missing,
    not_loaded,
    packed_tensors,
)

_SAID = "the MTP head is not usable; the log of GPU 0 says why"


class Qwen3_5MTP(_StockQwen3_5MTP):  # type: ignore[misc]  # noqa: N801 - vLLM's name for it
    """vLLM's draft model; its first load ends with a verified head or an error."""

    _head_checked = False

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load as vLLM does, and check what arrived.

        Later loads of the same model (weight updates in training) may be partial and are not checked.

        Raises:
            MtpHeadError: a tensor of the head never arrived or has another shape, or a parameter was not loaded, is
                zero or not finite. With several ranks all raise it, whichever has the part that is damaged.
        """
        if self._head_checked or not _check_is_on(self.vllm_config):
            unchecked: set[str] = super().load_weights(weights)
            return unchecked
        self._head_checked = True
        expected = _expected_tensors(self.vllm_config)
        quantization = quantization_config(self.vllm_config.model_config)
        packed = packed_tensors(expected, quantization, self.packed_modules_mapping)
        arrived: dict[str, Arrival] = {}
        try:
            loaded: set[str] = super().load_weights(_recorded(weights, arrived))
        except Exception as error:
            # A head of another shape dies in an assertion without a name; say which tensor it was.
            wrong = misshapen(expected, arrived, packed)
            if wrong:
                raise self._logged_error(wrong) from error
            raise
        problems = on_each_rank(told(self._problems(expected, packed, arrived, loaded)))
        if problems:
            raise self._logged_error(problems)
        if first_rank():
            logger.info("MTP head verified: %d tensors loaded", len(expected) or len(arrived))
            note("MTP head", "verified", f"{len(expected) or len(arrived)} tensors arrived in the worker")
        return loaded

    def _problems(
        self,
        expected: dict[str, tuple[int, ...]],
        packed_shapes: dict[str, tuple[int, ...]],
        arrived: dict[str, Arrival],
        loaded: set[str] | None,
    ) -> list[str]:
        packed = self.packed_modules_mapping
        parameters = head_parameters(self)
        absent = missing(expected, arrived, packed)
        problems = [f"no tensor for {len(absent)} of {len(expected)}: {_first_few(absent)}"] if absent else []
        problems += misshapen(expected, arrived, packed_shapes)
        problems += cast_raw(arrived, parameters, packed)
        # vLLM's loader does that afterwards, and knows more parameters that no checkpoint holds.
        if not absent and not draft_weights_are_tracked(self.vllm_config):
            unloaded = not_loaded(parameters, loaded, self._modules_where("uses_meta_device"))
            problems += (
                [f"{len(unloaded)} parameters were not loaded: {_first_few(unloaded)}"] if unloaded else []
            )
        # Memory that was never written holds anything; its values are no further evidence.
        return problems or bad_values(parameters, self._shard_sizes())

    def _logged_error(self, problems: list[str]) -> MtpHeadError:
        model = str(self.vllm_config.model_config.model)
        remedy = f"Fetch the checkpoint again, or graft the head: qwen36 repair {model} --mtp-from ORIGINAL"
        message = head_refusal(model, [(problem, remedy) for problem in problems])
        if first_rank():
            logger.error("%s", message)
        # vLLM prints what each worker raises. With one, as in a program of the user's own, it is all there is.
        return MtpHeadError(message if rank().size == 1 else _SAID)

    def _modules_where(self, flag: str) -> list[str]:
        return [n for n, m in self.named_modules() if getattr(getattr(m, "quant_method", None), flag, False)]

    def _shard_sizes(self) -> dict[str, list[int]]:
        return {name: list(getattr(m, "output_partition_sizes", ())) for name, m in self.named_modules()}


def _recorded(
    weights: Iterable[tuple[str, torch.Tensor]], arrived: dict[str, Arrival]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass ``weights`` on, and record those of the head in ``arrived``."""
    for name, tensor in weights:
        head_name = checkpoint_name(name)
        if head_name is not None:
            arrived[head_name] = Arrival(tuple(tensor.shape), tensor.dtype)
        # The same object: vLLM 0.26 and later hang attributes on it on its way to the parameter.
        yield name, tensor


def _check_is_on(vllm_config: Any) -> bool:
    """Whether the check is on and weights come from files; dummy ones are overwritten in pieces later."""
    options = PluginOptions.of(getattr(vllm_config, "additional_config", None))
    return options.mtp_check == "on" and load_format(draft_load_config(vllm_config)) != "dummy"


def _expected_tensors(vllm_config: Any) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes to expect; none, with a warning, for a config that cannot be understood."""
    try:
        return expected_tensors(vllm_config.model_config.hf_text_config.to_dict())
    except Exception as error:  # noqa: BLE001 - the checks that need no expectation go on
        logger.warning("MTP check in the worker goes by parameters alone: %s", error or repr(error))
        return {}


def _first_few(names: list[str], limit: int = 4) -> str:
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
