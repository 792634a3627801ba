"""The model classes that vLLM builds in place of its own, under the same names.

vLLM's registry imports this module in the worker, where a model is built, and asks for a class by name. That is the
moment to offer kernels: from ``register()`` it would import vLLM's (3.5 s on two cores) into every command.
"""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from .architectures import MTP_DRAFT, TARGETS
from .log import logger
from .report import note

try:
    if current_platform.is_cpu():
        from .cpu.dispatchers import mend_dispatchers
        from .cpu.packed_weights import offer

        offer()
        if mended := mend_dispatchers():
            logger.debug("vllm-qwen36-plugin: vLLM's own functions in place of %s", ", ".join(mended))
    elif current_platform.is_cuda():
        from .prefill.offer import offer

        offer()
except ImportError as error:  # a library that is missing must not keep a model from serving
    logger.warning("vllm-qwen36-plugin: kernels stay as vLLM chooses them because %s", error)


def __getattr__(name: str) -> Any:
    if name == MTP_DRAFT:
        made = _draft_class()
    elif name in TARGETS:
        made = _target_class(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The same class however often it is asked for; a target's can be pickled by its name here.
    globals()[name] = made
    return made


def _draft_class() -> type:
    """The draft model with cheaper drafts; the one with the check alone, or vLLM's, if that cannot be imported."""
    try:
        from .draft_head.model import Qwen3_5MTP

        return Qwen3_5MTP
    except Exception as error:  # noqa: BLE001 - drafts as vLLM makes them are right too
        logger.warning("vllm-qwen36-plugin: drafts stay as vLLM makes them because %s", error or repr(error))
        note("drafts", "stock", error or repr(error))
    try:
        from .mtp_guard.worker import Qwen3_5MTP as Checked

        return Checked
    except Exception as error:  # noqa: BLE001 - and so does a head that nobody checks
        logger.warning(
            "vllm-qwen36-plugin: the MTP check in the worker is off because %s", error or repr(error)
        )
    from vllm.model_executor.models.qwen3_5_mtp import Qwen3_5MTP as Stock

    stock: type = Stock
    return stock


def _target_class(name: str) -> type:
    from vllm.model_executor.models import qwen3_5

    try:
        from .act_order.siblings import announcing
    except ImportError as error:
        logger.warning("vllm-qwen36-plugin: norms stay as vLLM has them because %s", error)
        return type(name, (getattr(qwen3_5, name),), {"__module__": __name__})
    made = announcing(_verifying(getattr(qwen3_5, name)))
    made.__module__ = __name__
    return made


def _verifying(stock: type) -> type:
    """The class whose greedy steps may be verified with a copy of its head; vLLM's, if that cannot be."""
    try:
        from .verify_head.model import verifying
    except Exception as error:  # noqa: BLE001 - without it every step has the whole head
        logger.debug("vllm-qwen36-plugin: verification stays as vLLM has it because %s", error or repr(error))
        return stock
    return verifying(stock)
