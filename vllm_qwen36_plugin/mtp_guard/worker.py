"""The draft class with a check after loading, registered in place of vLLM's own under the same name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from vllm.model_executor.models.qwen3_5_mtp import Qwen3_5MTP as _StockQwen3_5MTP

from vllm_qwen36_plugin.errors import MtpHeadError
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.start.refusal import refusal
from vllm_qwen36_plugin.upstream.draft import draft_load_config, format_name

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


class Qwen3_5MTP(_StockQwen3_5MTP):  # type: ignore[misc]  # noqa: N801 - vLLM's name for it
    """vLLM's draft model; its first load ends with a verified head or an error."""

    _head_checked = False

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load as vLLM does, noting what comes by.

        Later loads of the same model (weight updates in training) may be partial and are not checked.

        Raises:
            MtpHeadError: a tensor of the head never came by or has another shape, a parameter was not loaded
                or is zero or not finite.
        """
        if self._head_checked or not _wanted(self.vllm_config):
            unchecked: set[str] = super().load_weights(weights)
            return unchecked
        self._head_checked = True
        expected = _expected(self.vllm_config)
        packed = packed_tensors(expected, _quantization(self.vllm_config), self.packed_modules_mapping)
        arrived: dict[str, Arrival] = {}
        try:
            loaded: set[str] = super().load_weights(_noting(weights, arrived))
        except Exception as error:
            # A head of another shape dies in an assertion without a name; say which tensor it was.
            wrong = misshapen(expected, arrived, packed)
            if wrong:
                raise self._refuse(wrong) from error
            raise
        problems = self._problems(expected, packed, arrived, loaded)
        if problems:
            raise self._refuse(problems)
        if _first_rank():
            logger.info("MTP head verified: %d tensors loaded", len(expected) or len(arrived))
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
        problems = [f"no tensor for {len(absent)} of {len(expected)}: {_some(absent)}"] if absent else []
        problems += misshapen(expected, arrived, packed_shapes)
        problems += cast_raw(arrived, parameters, packed)
        if not absent:
            unloaded = not_loaded(parameters, loaded, self._modules_where("uses_meta_device"))
            problems += [f"{len(unloaded)} parameters were not loaded: {_some(unloaded)}"] if unloaded else []
        # Memory that was never written holds anything; its values are no further evidence.
        return problems or bad_values(parameters, self._shard_rows())

    def _refuse(self, problems: list[str]) -> MtpHeadError:
        model = str(self.vllm_config.model_config.model)
        remedy = f"Fetch the checkpoint again, or graft the head: qwen36 repair {model} --mtp-from ORIGINAL"
        message = refusal(model, [(problem, remedy) for problem in problems])
        if _first_rank():
            logger.error("%s", message)
        return MtpHeadError(message)

    def _modules_where(self, flag: str) -> list[str]:
        return [n for n, m in self.named_modules() if getattr(getattr(m, "quant_method", None), flag, False)]

    def _shard_rows(self) -> dict[str, list[int]]:
        return {name: list(getattr(m, "output_partition_sizes", ())) for name, m in self.named_modules()}


def _noting(
    weights: Iterable[tuple[str, torch.Tensor]], arrived: dict[str, Arrival]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        own = checkpoint_name(name)
        if own is not None:
            arrived[own] = Arrival(tuple(tensor.shape), tensor.dtype)
        # The same object: vLLM 0.26 and later hang attributes on it on its way to the parameter.
        yield name, tensor


def _wanted(vllm_config: Any) -> bool:
    """Whether the check is on and weights come from files; dummy ones are overwritten in pieces later."""
    options = PluginOptions.of(getattr(vllm_config, "additional_config", None))
    return options.mtp_check == "on" and format_name(draft_load_config(vllm_config)) != "dummy"


def _expected(vllm_config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes to wait for; none, with a warning, for a config that cannot be understood."""
    try:
        return expected_tensors(vllm_config.model_config.hf_text_config.to_dict())
    except Exception as error:  # noqa: BLE001 - the checks that need no expectation go on
        logger.warning("MTP check in the worker goes by parameters alone: %s", error or repr(error))
        return {}


def _quantization(vllm_config: Any) -> dict[str, Any] | None:
    """The checkpoint's ``quantization_config``, where vLLM keeps it."""
    for owner in ("hf_config", "hf_text_config"):
        found = getattr(getattr(vllm_config.model_config, owner, None), "quantization_config", None)
        if isinstance(found, dict):
            return found
    return None


def _first_rank() -> bool:
    try:
        from vllm.distributed import get_tensor_model_parallel_rank

        return bool(get_tensor_model_parallel_rank() == 0)
    except Exception:  # noqa: BLE001 - no distributed environment, in a test say
        return True


def _some(names: list[str], limit: int = 4) -> str:
    head = ", ".join(names[:limit])
    return head if len(names) <= limit else f"{head} and {len(names) - limit} more"
