"""The hybrid definition: a mixin over whatever class gptqmodel maps, put where gptqmodel looks.

Changes: entries ``qwen3_5`` and ``qwen3_5_text`` of ``gptqmodel.models.auto.MODEL_MAP``, which is read at every
    load.
Why: gptqmodel has no registry of model definitions. Its own definition of the hybrid quantizes ``in_proj_qkv`` and
    ``in_proj_z`` one after the other, replays a wrong attention mask, and does not keep the MTP head.
Versions: 6.0.3 to 7.7.0.
Checks: the table is a dict and has both entries; the module tree holds the three blocks.
May go: when gptqmodel reads the entry-point group ``gptqmodel.model_definitions``, which this distribution
    declares.
"""

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
    Checkpoint,
    DraftVocab,
    layout_for,
    write_draft_vocab,
)
from gptq_hybrid.checkpoint.fingerprint import file_fingerprints
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor.mtp_head import find_mtp_in
from gptq_hybrid.losses import ModuleRecord
from gptq_hybrid.recipes import Packaging, refuse_impossible
from gptq_hybrid.upstream import (
    IncompatibleError,
    installed_version,
    keep_log,
    moved,
    prepare_environment,
    record_modules,
    refuse_batches,
    resumable,
    supports_shared_input_tags,
    without_stray_logs,
)
from gptq_hybrid.upstream.speedups import Products, faster
from gptq_hybrid.writer import CheckpointSpec, Limits, Verdict, write_checkpoint

from ._layers import causal_mask, hybrid_tree

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("qwen3_5", "qwen3_5_text")

_log = logging.getLogger(__name__)


class HybridDefinition:
    """What this project adds to gptqmodel's own definition of the hybrid.

    The attributes down to ``on_stop`` may be set between ``load`` and ``quantize``, or until ``save`` where
    only the writer uses them.

    Attributes:
        keep_mtp: keep the MTP head; False writes a checkpoint without one.
        packaging: whether the writer packs the output head and the MTP head, and leaves the vision tower out.
        limits: past which ``save`` refuses.
        faster: quantize within :func:`~gptq_hybrid.upstream.speedups.faster`.
        products: the argument of ``faster``. On a GPU ``"half"`` differs from gptqmodel in the last digits of
            Hessians, ``"ieee"`` in no byte.
        calibration_manifest: saved as ``calibration.json``; from ``gptq_hybrid.calibration.load_calibration``.
        draft_vocab: saved as ``draft_vocab.json``; from ``gptq_hybrid.draft_vocab.draft_vocab_from_rows``.
        source_checkpoint: the source, if it is open already.
        on_slower: called with the reason if ``faster`` does not fit the installed gptqmodel.
        on_stop: called when a run with a ``checkpoint`` is asked to stop (Ctrl-C, SIGTERM).
        module_records: a :class:`~gptq_hybrid.losses.ModuleRecord` by full module name, after ``quantize``.
        verdict: after ``save``.
    """

    keep_mtp: bool = True
    packaging: Packaging = Packaging()
    limits: Limits = Limits()
    faster: bool = True
    products: Products = "half"
    calibration_manifest: Mapping[str, Any] | None = None
    draft_vocab: DraftVocab | None = None
    source_checkpoint: Checkpoint | None = None
    on_slower: Callable[[str], None] | None = None
    on_stop: Callable[[], None] | None = None
    module_records: Mapping[str, ModuleRecord]
    verdict: Verdict
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
        """gptqmodel's hook: give each full-attention layer the causal mask it needs (see :func:`causal_mask`)."""
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
                heads cannot be packed as ``packaging`` says, or GPTAQ would fail on the batches; or the state of
                ``checkpoint`` does not fit the run.
            RunInterruptedError: a run with ``checkpoint`` was stopped, and its state is whole.
        """
        _refuse_unsupported(self.quantize_config)
        source = self._open_source()
        group_size = int(self.quantize_config.group_size)
        refuse_impossible(layout_for(source.config), self.packaging, group_size, keep_mtp=self.keep_mtp)
        arguments = inspect.signature(super().quantize).bind(*args, **kwargs).arguments  # type: ignore[misc]
        if getattr(self.quantize_config, "gptaq", None) is not None:
            refuse_batches(int(arguments.get("batch_size", 1)))
        if self.keep_mtp:
            find_mtp_in(source)
        with ExitStack() as stack:
            method = "gptqmodel alone"
            if self.faster:
                try:
                    # Before what looks at the solver, which this replaces.
                    stack.enter_context(faster(products=self.products))
                    method = f"faster, products {self.products}"
                except IncompatibleError as error:
                    _log.warning("quantizing takes longer than it could: %s", error)
                    if self.on_slower is not None:
                        self.on_slower(error.message)
            records = stack.enter_context(record_modules())
            stack.enter_context(without_stray_logs())
            if arguments.get("checkpoint") is not None:
                stack.enter_context(resumable(records, file_fingerprints, self.on_stop, method))
            out = super().quantize(*args, **kwargs)  # type: ignore[misc]
        keep_log(self, out)
        self.module_records = records
        return out

    def save(self, save_dir: str, *args: Any, **kwargs: Any) -> None:
        """gptqmodel's ``save``, in the checkpoint format of this project (see ``gptq_hybrid.writer``).

        Written beside ``save_dir`` and renamed at the end.

        Raises:
            FileExistsError: ``save_dir`` holds files already.
            QuantizationFailedError: too many modules failed.
            HybridError: the result fails a check; nothing is left behind.
        """
        if not getattr(self, "quantized", False):
            super().save(save_dir, *args, **kwargs)  # type: ignore[misc]
            return
        spec = CheckpointSpec(
            source=self._open_source(),
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

        self.verdict = write_checkpoint(spec, Path(save_dir), save_files)
        offload = getattr(self.quantize_config, "offload_to_disk_path", None)
        # 6.0.3 leaves its offload folder in the working directory for good.
        if offload and Path(offload).parent.name == "gptqmodel_offload":
            shutil.rmtree(offload, ignore_errors=True)

    def _open_source(self) -> Checkpoint:
        return self.source_checkpoint or Checkpoint.open(self.model_local_path)


def register_definitions() -> None:
    """See :func:`gptq_hybrid.register`."""
    prepare_environment()
    installed_version()
    from gptqmodel.models import auto

    table = getattr(auto, "MODEL_MAP", None)
    if not isinstance(table, dict):
        raise moved("gptqmodel.models.auto.MODEL_MAP is expected to be a dict")
    for model_type in MODEL_TYPES:
        upstream = table.get(model_type)
        if upstream is None:
            raise moved(f"MODEL_MAP has no {model_type!r} (transformers 5.2 or later is needed)")
        if not issubclass(upstream, HybridDefinition):
            table[model_type] = hybrid_class(upstream, model_type)


def hybrid_class(upstream: type, model_type: str) -> type:
    """Subclass ``upstream``, gptqmodel's definition of ``model_type``, with the hybrid's behaviour."""
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
