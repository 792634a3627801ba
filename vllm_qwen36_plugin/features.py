"""The features: what each is called in its warning, how it is installed, and on which platform of vLLM."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Literal, NamedTuple

from .architectures import MTP_DRAFT, TARGETS
from .log import logger
from .report import note

_warned: set[str] = set()


class Feature(NamedTuple):
    """One line of :data:`FEATURES`. ``install`` is idempotent and may raise anything."""

    name: str
    install: Callable[[], None]
    platform: Literal["any", "cpu", "cuda"] = "any"


class Installed(NamedTuple):
    """What became of a feature in this process; ``why`` it is off is for people."""

    name: str
    on: bool
    why: str = ""


def install_features() -> list[Installed]:
    """Install every feature of this platform; skip one that fails, with one warning and a note for /metrics."""
    installed = []
    for feature in FEATURES:
        on, why = False, ""
        try:
            if feature.platform == "any" or feature.platform == _platform():
                feature.install()
                on = True
            else:
                why = f"it is for vLLM on {feature.platform.upper()}, and this is on {_platform().upper()}"
        except Exception as error:  # noqa: BLE001 - whatever it is, it disables one feature and no more
            why = str(error or repr(error))
            note(feature.name, "off", why)
            if feature.name not in _warned:
                _warned.add(feature.name)
                logger.warning("vllm-qwen36-plugin: %s is off because %s", feature.name, why)
        installed.append(Installed(feature.name, on, why))
    return installed


def _platform() -> str:
    from vllm.platforms import current_platform

    return "cpu" if current_platform.is_cpu() else "cuda" if current_platform.is_cuda() else "other"


def _check_before_start(key: str, module: str, function: str = "check_before_start") -> Callable[[], None]:
    """Make an installer of a check that vLLM runs on the whole config of a model of the family."""

    def check(vllm_config: object) -> None:
        # Imported when it runs, so that other models never pay for it.
        getattr(import_module(module, __package__), function)(vllm_config)

    def install() -> None:
        from .upstream.config_map import add_config_check

        for architecture in TARGETS:
            add_config_check(architecture, key, check)

    return install


def _replace_draft_class() -> None:
    from .upstream.model_registry import replace_model_class

    replace_model_class(MTP_DRAFT, f"{__package__}.models:{MTP_DRAFT}")


def _replace_target_classes() -> None:
    from .upstream.model_registry import known_model_classes, replace_model_class

    for architecture in known_model_classes().intersection(TARGETS):
        replace_model_class(architecture, f"{__package__}.models:{architecture}")


def _claim_act_order() -> None:
    from .act_order.register import register

    register()


def _mend_sampling() -> None:
    from .cpu.sampling import mend_sampling_with_drafts

    mend_sampling_with_drafts()


FEATURES = (
    # First: what the others note has to go somewhere.
    Feature("the report in /metrics", _check_before_start("report", ".report.publish", "before_start")),
    Feature("the MTP check before start", _check_before_start("mtp", ".mtp_guard.front")),
    Feature("the MTP check in the worker", _replace_draft_class),
    Feature("the options for drafts", _check_before_start("drafts", ".draft_head.front")),
    Feature("packed weights on CPUs", _replace_target_classes, "cpu"),
    Feature("sampling with drafts on CPUs", _mend_sampling, "cpu"),
    Feature("act order", _claim_act_order),
    Feature("norms that write in act order", _replace_target_classes, "cuda"),
    Feature("the act-order check before start", _check_before_start("act-order", ".act_order.front")),
    Feature("prefill", _replace_target_classes, "cuda"),
    Feature("the prefill options", _check_before_start("prefill", ".prefill.front", "before_start"), "cuda"),
)
