"""vLLM's draft model with linears in fewer bits and a head of its own; registered under vLLM's name for it."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.mtp_guard.worker import Qwen3_5MTP as _CheckedQwen3_5MTP
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.ranks import agreed, first_rank
from vllm_qwen36_plugin.report import note
from vllm_qwen36_plugin.start import enter_salt
from vllm_qwen36_plugin.upstream.tensor_parallel import rank, told

from .banner import NAMES, DraftReport
from .head import DraftHead, dense_weight
from .methods import CheckedOnLoad, quantized_bytes, quantizing_method
from .room import copied_by_vllm, share_of_cache, wins_up_to
from .settings import DraftSettings, Precision, current_device, draft_settings
from .sharded import make_sharded
from .vocabulary import draft_list, ids_to_draft

# vLLM builds the draft model with an output head of its own and assigns the target's afterwards.
_HEAD = "lm_head"


class Qwen3_5MTP(_CheckedQwen3_5MTP):  # noqa: N801 - vLLM's name for it
    """vLLM's draft model; the package says what is changed.

    What cannot be done here is left as vLLM does it, with one warning.
    """

    _settings: DraftSettings | None = None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.draft_head: DraftHead | None = None
        self._report = DraftReport()
        try:
            options = PluginOptions.of(vllm_config.additional_config)
            settings = draft_settings(options, *current_device())
            self._quantize_linears(settings)
        except Exception as error:  # noqa: BLE001 - drafts as vLLM makes them are right too
            logger.warning(
                "vllm-qwen36-plugin: drafts stay as vLLM makes them because %s", error or repr(error)
            )
            note("drafts", "stock", error or repr(error))
            return
        self._settings = settings

    def _quantize_linears(self, settings: DraftSettings) -> None:
        for name, layer in self.model.named_modules():
            if not isinstance(layer, LinearBase) or type(layer.quant_method) is not UnquantizedLinearMethod:
                continue
            precision = settings.precision_for(name)
            method = quantizing_method(layer.weight, precision)
            if method is not None:
                self._report.add(layer)
                layer.quant_method = CheckedOnLoad(method, layer.quant_method, precision, self._stays_dense)

    def _stays_dense(self, layer: torch.nn.Module, error: Exception) -> None:
        logger.warning(
            "vllm-qwen36-plugin: %s drafts from its own weights because %s",
            getattr(layer, "prefix", type(layer).__name__),
            error or repr(error),
        )
        # What is compiled is not what the check before start entered.
        enter_salt(self.vllm_config, "drafts", f"{self._report.remove(layer)} linears quantized")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Both model runners hand over the target's head this way, once its weights are there and before
        # memory is counted.
        if name == _HEAD and self._settings is not None and isinstance(value, torch.nn.Module):
            self._make_head(value, self._settings)

    def _make_head(self, lm_head: torch.nn.Module, settings: DraftSettings) -> None:
        self.draft_head = None
        self._report.remark("")
        if not settings.stock:
            try:
                self.draft_head = self._draft_head(lm_head, settings)
            except Exception as error:  # noqa: BLE001 - the target's head drafts as well
                if first_rank():
                    logger.warning(
                        "vllm-qwen36-plugin: drafts use the model's own output head because %s",
                        error or repr(error),
                    )
        if first_rank():
            line = self._report.line(settings.precision, self.model, self.draft_head, rank().size)
            logger.info("%s", line)
            note("drafts", settings.precision, line.partition(": ")[2])

    def _draft_head(self, lm_head: torch.nn.Module, settings: DraftSettings) -> DraftHead | None:
        ranks = rank().size
        make = make_sharded if ranks > 1 else DraftHead
        ids = agreed(lambda: ids_to_draft(settings, draft_list(self.vllm_config, settings), ranks))
        if ids is not None:
            return make(lm_head, self.config.vocab_size, ids, settings.precision)
        precision = settings.precision_of_whole_head
        if precision == "bf16":
            return None
        if copied_by_vllm(self.vllm_config):
            self._report.remark("vLLM's own copy of it drafts (draft_lm_head_quantization)")
            return None
        if settings.most_of_cache is not None and not self._pays(lm_head, precision, settings.most_of_cache):
            return None
        head = make(lm_head, self.config.vocab_size, None, precision)
        return head if settings.most_of_cache is None or self._wins(head, lm_head, precision) else None

    def _wins(self, head: DraftHead, lm_head: torch.nn.Module, precision: Precision) -> bool:
        """Whether the copy is faster than the head itself on every GPU; up to so many positions it is used."""
        weight = dense_weight(lm_head)
        if weight is None:
            return True
        head.most_positions = min(told(agreed(lambda: wins_up_to(head, weight))))
        if not head.most_positions:
            self._report.remark(f"a copy in {NAMES[precision]} is no faster on this GPU")
        return head.most_positions > 0

    def _pays(self, lm_head: torch.nn.Module, precision: Precision, most: float) -> bool:
        """Whether a copy of the head takes little of the KV cache; a packed head is read as cheaply as a copy."""
        weight = dense_weight(lm_head)
        if weight is None:
            return False
        extra = quantized_bytes(weight, precision) - self._report.freed(self.model)
        # That of the GPU with the least room: all have a copy, or none.
        share = max(told(agreed(lambda: share_of_cache(extra, self.vllm_config))))
        cost = f"{share:.1%} of the KV cache" if share < 1 else "more than the KV cache has"
        if share <= most:
            self._report.remark(f"{cost} for it")
            return True
        self._report.remark(f"a copy in {NAMES[precision]} would take {cost}")
        return False

    def compute_logits(self, hidden_states: torch.Tensor, spec_step_idx: int = 0) -> torch.Tensor | None:
        """Return ``[positions, vocabulary]``; tokens that are not drafted have minus infinity."""
        if self.draft_head is None or self.draft_head.leaves(len(hidden_states)):
            stock: torch.Tensor | None = super().compute_logits(hidden_states, spec_step_idx)
            return stock
        return self.draft_head.logits(hidden_states)

    def get_top_tokens(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the likeliest token at each position, int64."""
        if self.draft_head is None or self.draft_head.leaves(len(hidden_states)):
            stock: torch.Tensor = super().get_top_tokens(hidden_states, *args, **kwargs)
            return stock
        return self.draft_head.top(hidden_states)
