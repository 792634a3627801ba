"""The features: what each is called in its warning, how it is installed, and on which platform of vLLM."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Literal, NamedTuple

from .architectures import MTP_DRAFT, TARGETS
from .errors import RefusalError
from .log import logger
from .report import note

Platform = Literal["any", "cpu", "cuda"]
_warned: set[str] = set()


class Feature(NamedTuple):
    """One line of :data:`FEATURES`. ``install`` is idempotent and may raise anything."""

    name: str
    install: Callable[[], None]
    platform: Platform = "any"


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
            _warn_off(feature.name, error)
        installed.append(Installed(feature.name, on, why))
    return installed


def _warn_off(name: str, error: Exception) -> None:
    if name not in _warned:
        _warned.add(name)
        logger.warning("vllm-qwen36-plugin: %s is off because %s", name, error or repr(error))


def _platform() -> str:
    from vllm.platforms import current_platform

    return "cpu" if current_platform.is_cpu() else "cuda" if current_platform.is_cuda() else "other"


def _checked(
    name: str, key: str, module: str, function: str = "check_before_start", *, platform: Platform = "any"
) -> Feature:
    """Make the feature of a check that vLLM runs on the whole config of a model of the family.

    A refusal ends the start. Any other error turns the feature off: a library that is missing, say.
    """

    def check(vllm_config: object) -> None:
        # Imported when it runs, so that other models never pay for it.
        try:
            getattr(import_module(module, __package__), function)(vllm_config)
        except RefusalError:
            raise
        except Exception as error:  # noqa: BLE001 - a check that breaks must not keep a good model from serving
            _warn_off(name, error)

    def install() -> None:
        from .upstream.config_map import add_config_check

        for architecture in TARGETS:
            add_config_check(architecture, key, check)

    return Feature(name, install, platform)


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
    _checked("the report in /metrics", "report", ".report.publish", "before_start"),
    _checked("the MTP check before start", "mtp", ".mtp_guard.front"),
    _checked("Triton's folder", "triton", ".start.triton_cache", platform="cuda"),
    Feature("the MTP check in the worker", _replace_draft_class),
    _checked("the options for drafts", "drafts", ".draft_head.front"),
    Feature("packed weights on CPUs", _replace_target_classes, "cpu"),
    Feature("sampling with drafts on CPUs", _mend_sampling, "cpu"),
    Feature("act order", _claim_act_order),
    Feature("norms that write in act order", _replace_target_classes, "cuda"),
    _checked("the act-order check before start", "act-order", ".act_order.front"),
    Feature("prefill", _replace_target_classes, "cuda"),
    _checked("the prefill options", "prefill", ".prefill.front", platform="cuda"),
)
