"""The hybrid definition, as a mixin over whatever class gptqmodel maps."""

from __future__ import annotations

import inspect
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptq_hybrid.checkpoint import (
    CALIBRATION_FILE,
    DRAFT_VOCAB_FILE,
    DraftVocab,
    layout_for,
    read_json_object,
    write_draft_vocab,
)
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor import find_mtp
from gptq_hybrid.quantize.state import source_identity
from gptq_hybrid.recipes.packaging import Packaging, refuse_impossible
from gptq_hybrid.upstream import (
    IncompatibleError,
    ModuleRecord,
    keep_log,
    record_modules,
    refuse_batches,
    resumable,
    supports_shared_input_tags,
    without_stray_logs,
)
from gptq_hybrid.upstream.speedups import Products, faster
from gptq_hybrid.writer import CheckpointPlan, Limits, write_checkpoint

from ._mask import causal_mask
from ._module_tree import hybrid_tree

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


class HybridDefinition:
    """What this project adds to gptqmodel's own definition of the hybrid.

    ``keep_mtp`` (default True): set it to False between ``load`` and ``quantize``
    for a checkpoint without its MTP head. ``module_records`` holds a
    :class:`~gptq_hybrid.upstream.ModuleRecord` by module name after ``quantize``.
    ``calibration_manifest`` (of ``gptq_hybrid.calibration.load_calibration``), where
    set, is saved as ``calibration.json``, ``draft_vocab`` (of ``gptq_hybrid.draft_vocab.draft_vocab_from_rows``) as
    ``draft_vocab.json``. ``packaging``
    (:class:`~gptq_hybrid.recipes.packaging.Packaging`): whether the writer packs the output
    head and the MTP head, and leaves the vision tower out; set it before ``quantize``. ``limits``: past which
    ``save`` refuses.
    ``on_stop()``, where set, is called when a run with a ``checkpoint`` is asked to stop (Ctrl-C, SIGTERM).
    ``faster`` (default True): quantize within :func:`~gptq_hybrid.upstream.speedups.faster`, with its ``products``: on a GPU
    ``"half"`` (the default) differs from gptqmodel in the last digits of Hessians, ``"ieee"`` in no byte.
    """

    keep_mtp: bool = True
    faster: bool = True
    products: Products = "half"
    calibration_manifest: Mapping[str, Any] | None = None
    draft_vocab: DraftVocab | None = None
    packaging: Packaging = Packaging()
    limits: Limits = Limits()
    on_stop: Callable[[], None] | None = None
    # The writer streams the head itself: 7.x would merge it into the main shards
    # (`out_of_model_tensors`), 6.0.3 has a mechanism of another name and loses it.
    out_of_model_tensors = None
    out_of_model_tensor_files = None

    quantize_config: Any
    model: Any
    model_local_path: str

    def after_model_load(self, model: Any, load_quantized_model: bool) -> Any:
        """gptqmodel's hook: refuse, before any work, what the hybrid cannot do."""
        if not load_quantized_model:
            _refuse_unsupported(self.quantize_config)
        return super().after_model_load(model, load_quantized_model=load_quantized_model)  # type: ignore[misc]

    def prepare_layer_replay_kwargs(
        self,
        layer: Any,
        layer_input: list[torch.Tensor],
        additional_inputs: dict[str, Any],
        target_device: Any,
    ) -> dict[str, Any]:
        """gptqmodel's hook: give each full-attention layer the causal mask it needs (see ``_mask``)."""
        inputs: dict[str, Any] = super().prepare_layer_replay_kwargs(  # type: ignore[misc]
            layer, layer_input, additional_inputs, target_device
        )
        if not hasattr(layer, "self_attn") or not layer_input:
            return inputs
        mask = inputs.get("attention_mask")
        if mask is not None and mask.ndim != 2:
            return inputs
        padded = mask is not None and not bool(mask.bool().all())
        eager = getattr(layer.self_attn.config, "_attn_implementation", None) == "eager"
        # Without padding, sdpa is causal by itself and takes its fastest kernel.
        return {**inputs, "attention_mask": causal_mask(layer_input[0], mask) if padded or eager else None}

    def quantize(self, *args: Any, **kwargs: Any) -> Any:
        """gptqmodel's ``quantize``, refused at once when the source lacks the MTP head it should keep.

        ``checkpoint=CheckpointConfig(...)``, of gptqmodel 7.4 and later, keeps the state of the run and continues
        from it; ``module_records`` of finished layers are part of it.

        Raises:
            HybridError: the source's head is absent or incomplete and ``keep_mtp`` is set, this model's
                heads cannot be packed as ``packaging`` asks, or GPTAQ is asked for with batches that it
                fails on; or the state of ``checkpoint`` does not fit the run.
            RunInterruptedError: a run with ``checkpoint`` was stopped, and its state is whole.
        """
        _refuse_unsupported(self.quantize_config)
        layout = layout_for(read_json_object(Path(self.model_local_path) / "config.json"))
        group_size = int(self.quantize_config.group_size)
        refuse_impossible(layout, self.packaging, group_size, keep_mtp=self.keep_mtp)
        asked = inspect.signature(super().quantize).bind(*args, **kwargs)  # type: ignore[misc]
        if getattr(self.quantize_config, "gptaq", None) is not None:
            refuse_batches(int(asked.arguments.get("batch_size", 1)))
        if self.keep_mtp:
            find_mtp(Path(self.model_local_path))
        with ExitStack() as stack:
            if self.faster:
                try:
                    # Before what looks at the solver, which this replaces.
                    stack.enter_context(faster(products=self.products))
                except IncompatibleError as error:
                    _log.warning("quantizing takes longer than it could: %s", error)
            records = stack.enter_context(record_modules())
            stack.enter_context(without_stray_logs())
            if asked.arguments.get("checkpoint") is not None:
                way = f"faster, products {self.products}" if self.faster else "gptqmodel alone"
                stack.enter_context(resumable(records, source_identity, self.on_stop, way))
            out = super().quantize(*args, **kwargs)  # type: ignore[misc]
        keep_log(self, out)
        self.module_records: dict[str, ModuleRecord] = records
        return out

    def save(self, save_dir: str, *args: Any, **kwargs: Any) -> None:
        """gptqmodel's ``save``, in the checkpoint format of this project (see ``gptq_hybrid.writer``).

        Written beside ``save_dir`` and renamed at the end.

        Raises:
            FileExistsError: ``save_dir`` holds files already.
            HybridError: the result fails a check; nothing is left behind.
        """
        if not getattr(self, "quantized", False):
            super().save(save_dir, *args, **kwargs)  # type: ignore[misc]
            return
        plan = CheckpointPlan(
            source=Path(self.model_local_path),
            keep_mtp=self.keep_mtp,
            records=getattr(self, "module_records", {}),
            packaging=self.packaging,
            limits=self.limits,
            extra_json={CALIBRATION_FILE: self.calibration_manifest} if self.calibration_manifest else {},
        )
        upstream_save = super().save  # type: ignore[misc]

        def save_files(folder: Path) -> None:
            upstream_save(str(folder), *args, **kwargs)
            if self.draft_vocab is not None:
                write_draft_vocab(folder / DRAFT_VOCAB_FILE, self.draft_vocab)

        write_checkpoint(plan, Path(save_dir), save_files)
        offload = getattr(self.quantize_config, "offload_to_disk_path", None)
        # 6.0.3 leaves its offload folder in the working directory for good.
        if offload and Path(offload).parent.name == "gptqmodel_offload":
            shutil.rmtree(offload, ignore_errors=True)


def _refuse_unsupported(config: Any) -> None:
    if config is None:
        return
    if getattr(config, "rotation", None):
        raise HybridError(
            "`rotation` is not supported for the hybrid: Gated-DeltaNet layers have no rotation-invariant form",
            remedy="Leave `rotation` out of QuantizeConfig.",
        )
    method = (
        str(getattr(config, "method", getattr(config, "quant_method", "gptq"))).rpartition(".")[2].lower()
    )
    checkpoint_format = str(getattr(config, "format", "gptq")).rpartition(".")[2].lower()
    if method != "gptq" or checkpoint_format != "gptq":
        raise HybridError(
            f"only GPTQ in the gptq format is supported, not method {method!r} with format {checkpoint_format!r}",
            remedy="Use QuantizeConfig(bits=4, group_size=128, ...) without `method` and `format`.",
        )


def hybrid_of(upstream: type, model_type: str) -> type:
    """A subclass of ``upstream`` (gptqmodel's definition of ``model_type``) with the hybrid's behaviour."""
    tags = supports_shared_input_tags(upstream)
    return type(
        f"Hybrid{upstream.__name__}",
        (HybridDefinition, upstream),
        {
            "__module__": __name__,
            "__doc__": f"{upstream.__name__} with {HybridDefinition.__name__}'s behaviour.",
            "module_tree": hybrid_tree(upstream.module_tree, tags=tags),  # type: ignore[attr-defined]
            # Read from the class's own __dict__, so it cannot live on the mixin.
            "shared_input_verified_model_types": frozenset({model_type}),
        },
    )
