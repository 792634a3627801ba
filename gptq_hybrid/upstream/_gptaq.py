"""GPTAQ, as gptqmodel has it: its config, what it cannot do, and what it did to each module.

``GPTAQ.quantize`` neither calls ``GPTQ.quantize`` nor ``finalize_hessian``, its
loss is not the rise of a quadratic form, and it counts rows where GPTQ counts
tokens. So the error is computed here from the Hessian that stands at entry.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from gptq_hybrid.common.errors import HybridError

from ._module_record import ModuleRecord, energy, module_name
from .gptqmodel import installed_version, moved


def gptaq_config(wanted: Mapping[str, Any]) -> Any:
    """gptqmodel's ``GPTAQConfig(**wanted)``.

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
    return config(**wanted)


def refuse_batches(batch_size: int) -> None:
    """Raise if GPTAQ would fail on batches of ``batch_size`` rows.

    It pairs inputs of the unquantized model with those of the quantized one.
    Where padding is taken out of the second kind alone, as in 7.6.0, their
    shapes differ as soon as two rows of a batch do.

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
    """Set ``model.quant_log``, which is saved as ``quant_log.csv``, from what ``model.quantize`` returned.

    gptqmodel sets it for processors of a few names, and ``gptaq`` is not among them.
    """
    if not getattr(model, "quant_log", None) and isinstance(logs, dict) and logs.get("gptaq"):
        model.quant_log = logs["gptaq"]


@contextmanager
def record_gptaq(note: Callable[[ModuleRecord], None]) -> Iterator[None]:
    """Call ``note`` for each module that GPTAQ quantizes while the block runs.

    Wraps ``GPTAQ.process_batch`` and ``GPTAQ.quantize`` and restores both. A
    gptqmodel without GPTAQ is left as it is.

    Raises:
        IncompatibleError: one of them is gone, or ``quantize`` returns something else.
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
    def process_and_count(self: Any, inp: Any, *args: Any, **kwargs: Any) -> Any:
        # A batch at a time: `add_batch` holds the solver's lock.
        tokens[id(self)] = tokens.get(id(self), 0) + inp.numel() // inp.shape[-1]
        return process(self, inp, *args, **kwargs)

    @wraps(quantize)
    def quantize_and_note(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen = tokens.pop(id(self), 0)
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
        note(
            ModuleRecord(
                module=name,
                columns=int(weight.shape[1]),
                tokens=seen,
                loss=float(loss),
                damp=float(damp),
                relative_error=error,
                dead_columns=int((hessian.diagonal() == 0).sum()),
                outcome="gptaq",
            )
        )
        return out

    gptaq.process_batch, gptaq.quantize = process_and_count, quantize_and_note
    try:
        yield
    finally:
        gptaq.process_batch, gptaq.quantize = process, quantize
