"""The features and how each is installed."""

from __future__ import annotations

from collections.abc import Callable

from .architectures import MTP_DRAFT, TARGETS
from .log import logger

_warned: set[str] = set()


def install_features() -> None:
    """Install every feature; one that fails is skipped with one warning a process."""
    for name, install in FEATURES.items():
        try:
            install()
        except Exception as error:  # noqa: BLE001 - whatever it is, it disables one feature and no more
            if name not in _warned:
                _warned.add(name)
                logger.warning("vllm-qwen36-plugin: %s is off because %s", name, error or repr(error))


def _install_mtp_front() -> None:
    from .upstream.config_map import add_config_check

    for architecture in TARGETS:
        add_config_check(architecture, "mtp", _check_mtp)


def _check_mtp(vllm_config: object) -> None:
    # Imported when it fires, so that other models never pay for it.
    from .mtp_guard.front import check_before_start

    check_before_start(vllm_config)


def _install_mtp_worker() -> None:
    from .upstream.model_registry import replace_model_class

    # One class, which is the checked one with cheaper drafts on top.
    replace_model_class(MTP_DRAFT, "vllm_qwen36_plugin.draft_head.registered:Qwen3_5MTP")


def _install_drafts_front() -> None:
    from .upstream.config_map import add_config_check

    for architecture in TARGETS:
        add_config_check(architecture, "drafts", _check_drafts)


def _check_drafts(vllm_config: object) -> None:
    from .draft_head.front import before_start

    before_start(vllm_config)


def _install_act_order_front() -> None:
    from .upstream.config_map import add_config_check

    for architecture in TARGETS:
        add_config_check(architecture, "act-order", _check_act_order)


def _check_act_order(vllm_config: object) -> None:
    from .act_order.front import check_before_start

    check_before_start(vllm_config)


def _install_cpu_int4() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    _build_our_classes()


def _install_cpu_sampling() -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from .cpu.sampling import mend_sampling_with_drafts

        mend_sampling_with_drafts()


def _install_act_order() -> None:
    from vllm.platforms import current_platform

    from .act_order.claim import register

    register()
    if current_platform.is_cuda():
        _build_our_classes()


def _build_our_classes() -> None:
    """For whichever features want something done where a model of the family is built."""
    from .upstream.model_registry import known_model_classes, replace_model_class

    for architecture in known_model_classes().intersection(TARGETS):
        replace_model_class(architecture, f"vllm_qwen36_plugin.models:{architecture}")


def _install_prefill() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return
    _build_our_classes()


def _install_prefill_front() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return
    from .upstream.config_map import add_config_check

    for architecture in TARGETS:
        add_config_check(architecture, "prefill", _check_prefill)


def _check_prefill(vllm_config: object) -> None:
    from .prefill.front import before_start

    before_start(vllm_config)


FEATURES: dict[str, Callable[[], None]] = {
    "the MTP check before start": _install_mtp_front,
    "the MTP check in the worker": _install_mtp_worker,
    "the options for drafts": _install_drafts_front,
    "packed weights on CPUs": _install_cpu_int4,
    "sampling with drafts on CPUs": _install_cpu_sampling,
    "act order": _install_act_order,
    "the act-order check before start": _install_act_order_front,
    "prefill": _install_prefill,
    "the prefill options": _install_prefill_front,
}
