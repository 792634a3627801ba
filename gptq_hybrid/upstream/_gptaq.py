"""GPTAQ as gptqmodel has it: its config, what it cannot do, and what it did to each module.

Changes: wraps ``GPTAQ.process_batch`` and ``GPTAQ.quantize``; sets ``model.quant_log`` after a run.
Why: ``GPTAQ.quantize`` calls neither ``GPTQ.quantize`` nor ``finalize_hessian``, its loss is not the rise of a
    quadratic form, and it counts rows where GPTQ counts tokens. So the error is computed here from the Hessian
    that stands at entry. gptqmodel keeps the log of processors of a few names, and ``gptaq`` is not among them.
Versions: those with ``GPTAQConfig`` and ``QuantizeConfig.gptaq``; 7.6.0 and 7.7.0 fail on padded batches.
Checks: both methods exist, ``quantize`` returns eight values; whether ``NativeProcessor.pre_process_fwd_hook``
    masks.
May go: when gptqmodel logs GPTAQ's errors and tokens, and takes padding out of both kinds of inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.losses import ModuleRecord

from ._damping import module_name
from ._energy import energy
from .versions import installed_version, moved


def gptaq_config(settings: Mapping[str, Any]) -> Any:
    """Return gptqmodel's ``GPTAQConfig(**settings)``.

    Raises:
        HybridError: this gptqmodel has none, or ``QuantizeConfig`` does not take it.
    """
    from gptqmodel import QuantizeConfig, quantization

    config = getattr(quantization, "GPTAQConfig", None)
    # From 7.x on QuantizeConfig makes an instance of a class by method; GPTQ's carries the field.
    if config is None or not hasattr(QuantizeConfig(), "gptaq"):
        raise HybridError(
            f"gptqmodel {installed_version()} has no GPTAQ",
            remedy="Take a recipe without `gptaq`, such as static-mse, or gptqmodel 7.6.0.",
        )
    return config(**settings)


def refuse_batches(batch_size: int) -> None:
    """Refuse batches that GPTAQ would fail on.

    GPTAQ pairs inputs of the unquantized model with those of the quantized one. Where padding is taken out of the
    second kind alone, their shapes differ as soon as two rows of a batch differ in length.

    Raises:
        HybridError: more than one row at a time, and this gptqmodel does that.
    """
    if batch_size < 2:
        return
    from gptqmodel.looper import native_processor

    hook = getattr(getattr(native_processor, "NativeProcessor", None), "pre_process_fwd_hook", None)
    if hook is None:
        raise moved("NativeProcessor.pre_process_fwd_hook is expected")
    if "mask" not in inspect.getsource(hook):
        raise HybridError(
            f"GPTAQ in gptqmodel {installed_version()} fails on padded batches (batch size {batch_size})",
            remedy="Leave the batch size at 1, or take a recipe without `gptaq`, such as static-mse.",
        )


def keep_log(model: Any, logs: Any) -> None:
    """Set ``model.quant_log``, which is saved as ``quant_log.csv``, from what ``model.quantize`` returned."""
    if not getattr(model, "quant_log", None) and isinstance(logs, dict) and logs.get("gptaq"):
        model.quant_log = logs["gptaq"]


@contextmanager
def record_gptaq(add: Callable[[ModuleRecord], None]) -> Iterator[None]:
    """Call ``add`` for each module that GPTAQ quantizes while the block runs.

    A gptqmodel without GPTAQ is left as it is.

    Raises:
        IncompatibleError: what is wrapped is gone, or ``quantize`` returns something else.
        HybridError: a module saw no calibration data.
    """
    from gptqmodel import quantization

    gptaq = getattr(quantization, "GPTAQ", None)
    if gptaq is None:
        yield
        return
    process: Callable[..., Any] | None = vars(gptaq).get("process_batch")
    quantize: Callable[..., Any] | None = vars(gptaq).get("quantize")
    if process is None or quantize is None:
        raise moved("GPTAQ.process_batch and GPTAQ.quantize are expected")
    tokens: dict[int, int] = {}

    @wraps(process)
    def counted_process(self: Any, inp: Any, *args: Any, **kwargs: Any) -> Any:
        # A batch at a time: `add_batch` holds the solver's lock.
        tokens[id(self)] = tokens.get(id(self), 0) + inp.numel() // inp.shape[-1]
        return process(self, inp, *args, **kwargs)

    @wraps(quantize)
    def recorded_quantize(self: Any, *args: Any, **kwargs: Any) -> Any:
        count = tokens.pop(id(self), 0)
        name = module_name(self)
        if getattr(self, "H", None) is None:
            raise HybridError(
                f"{name} saw no calibration data, and GPTAQ cannot go on without",
                remedy="Use more, or more varied, calibration data.",
            )
        weight = self.module.weight.detach()
        # `quantize` writes into it.
        hessian = self.H.clone()
        out = quantize(self, *args, **kwargs)
        if not isinstance(out, tuple) or len(out) != 8:
            raise moved("GPTAQ.quantize is expected to return eight values")
        quantized, _, _, _, _, loss, damp, _ = out
        whole = energy(weight, hessian)
        error = None
        if whole > 0 and quantized.shape == weight.shape:
            error = max(0.0, energy(weight, hessian, less=quantized)) / whole
        add(
            ModuleRecord(
                module=name,
                columns=int(weight.shape[1]),
                tokens=count,
                loss=float(loss),
                damp=float(damp),
                relative_error=error,
                dead_columns=int((hessian.diagonal() == 0).sum()),
                outcome="gptaq",
                floor=0.0,
                nonfinite_columns=0,
            )
        )
        return out

    gptaq.process_batch, gptaq.quantize = counted_process, recorded_quantize
    try:
        yield
    finally:
        gptaq.process_batch, gptaq.quantize = process, quantize
