"""What ``register()`` does to a vLLM process, and that it can do no harm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gptq_hybrid.checkpoint.families import families
from vllm_qwen36_plugin import features, register
from vllm_qwen36_plugin.architectures import MTP_DRAFT, TARGETS
from vllm_qwen36_plugin.errors import CompatError
from vllm_qwen36_plugin.upstream.config_map import add_config_check

Shown = Callable[[], str]
CONFIG, REGISTRY = "vllm.model_executor.models.config", "vllm.model_executor.models.registry"


class Registry:
    """The part of vLLM's registry that is used, counting what vLLM would warn of."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {MTP_DRAFT: "stock", "Other": "stock"}
        self.overwritten: list[str] = []

    def register_model(self, architecture: str, model: str) -> None:
        if architecture in self.models:
            self.overwritten.append(architecture)
        self.models[architecture] = model


class Base:
    calls: list[str] = []  # noqa: RUF012 - reset by the fixture

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        Base.calls.append("base")

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        Base.calls.append("model")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """vLLM's two modules as stand-ins, so that nothing leaks into other tests and nothing heavy is imported."""
    registry, config_map = Registry(), {TARGETS[0]: Base, "Other": Base}
    Base.calls = []
    config, models = ModuleType(CONFIG), ModuleType(REGISTRY)
    vars(config).update(MODELS_CONFIG_MAP=config_map, VerifyAndUpdateConfig=Base)
    vars(models).update(ModelRegistry=registry)
    parent = ModuleType(CONFIG.rpartition(".")[0])
    vars(parent).update(config=config, registry=models)
    monkeypatch.setitem(sys.modules, parent.__name__, parent)
    monkeypatch.setitem(sys.modules, CONFIG, config)
    monkeypatch.setitem(sys.modules, REGISTRY, models)
    monkeypatch.setattr(features, "_warned", set())
    mtp_alone = tuple(feature for feature in features.FEATURES if "MTP" in feature.name)
    monkeypatch.setattr(features, "FEATURES", mtp_alone)
    return SimpleNamespace(config=config, models=models, registry=registry, map=config_map)


def test_the_architectures_are_those_of_the_family() -> None:
    (family,) = [f for f in families() if f.name == "qwen3_5"]
    assert family.architectures == TARGETS
    assert family.mtp_architectures == (MTP_DRAFT,)


def test_registering_twice_is_registering_once(vllm: SimpleNamespace, shown: Shown) -> None:
    register()
    hooks = dict(vllm.map)
    register()
    assert vllm.map == hooks
    assert vllm.registry.overwritten == []
    assert shown() == ""


def test_other_models_are_untouched(vllm: SimpleNamespace) -> None:
    register()
    assert vllm.map["Other"] is Base
    assert vllm.registry.models["Other"] == "stock"
    assert set(vllm.map) == {"Other", *TARGETS}


def test_the_hook_runs_after_vllms_own_and_keeps_its_other_methods(
    vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vllm_qwen36_plugin.mtp_guard.front.check_before_start", lambda _: Base.calls.append("ours")
    )
    register()
    hooked = vllm.map[TARGETS[0]]
    hooked.verify_and_update_config(object())
    hooked.verify_and_update_model_config(object())
    assert Base.calls == ["base", "ours", "model"]
    assert issubclass(hooked, Base)


def test_hooks_of_several_names_stack(vllm: SimpleNamespace) -> None:
    seen: list[str] = []
    for name in ("a", "b", "a"):
        add_config_check(TARGETS[0], name, lambda _, name=name: seen.append(name))  # type: ignore[misc]
    vllm.map[TARGETS[0]].verify_and_update_config(object())
    assert seen == ["a", "b"]


@pytest.mark.parametrize(
    ("module", "attribute", "value"),
    [
        ("config", "MODELS_CONFIG_MAP", None),
        ("config", "MODELS_CONFIG_MAP", {TARGETS[0]: "a string", TARGETS[1]: Base}),
        ("models", "ModelRegistry", object()),
        ("models", "ModelRegistry", SimpleNamespace(models={}, register_model=print)),
    ],
)
def test_a_vllm_that_has_changed_turns_one_feature_off_with_one_warning(
    vllm: SimpleNamespace, shown: Shown, module: str, attribute: str, value: Any
) -> None:
    setattr(getattr(vllm, module), attribute, value)
    register()
    register()
    lines = shown().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("WARNING vllm-qwen36-plugin: the MTP check")
    assert " is off because " in lines[0]
    other_feature_works = (
        vllm.registry.models[MTP_DRAFT] != "stock" if module == "config" else vllm.map[TARGETS[1]] is not Base
    )
    assert other_feature_works


def test_a_vllm_without_these_modules_never_sees_an_exception(
    vllm: SimpleNamespace, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, CONFIG, None)
    monkeypatch.setitem(sys.modules, REGISTRY, None)
    monkeypatch.delattr(sys.modules[CONFIG.rpartition(".")[0]], "config")
    register()
    assert shown().count(" is off because ") == 2


@dataclass(frozen=True)
class Entry:
    """As vLLM's lazily imported class."""

    module_name: str
    class_name: str

    def inspect_model_cls(self) -> str:
        return f"inspected {self.module_name}"

    def load_model_cls(self) -> str:
        return f"{self.module_name}.{self.class_name}"


def test_vllm_inspects_its_own_class_and_builds_ours(
    vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm.registry.models[MTP_DRAFT] = Entry("stock", "Qwen3_5MTP")

    def register_model(architecture: str, model: str) -> None:
        vllm.registry.models[architecture] = Entry(*model.split(":"))

    monkeypatch.setattr(vllm.registry, "register_model", register_model)
    register()
    entry = vllm.registry.models[MTP_DRAFT]
    register()
    assert vllm.registry.models[MTP_DRAFT] is entry
    assert isinstance(entry, Entry)
    assert hash(entry) is not None  # vLLM caches by it
    assert entry.inspect_model_cls() == "inspected stock"
    assert entry.load_model_cls() == "vllm_qwen36_plugin.models.Qwen3_5MTP"


def test_a_failed_registration_keeps_vllms_own_class(
    vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise TypeError("another signature")

    monkeypatch.setattr(vllm.registry, "register_model", broken)
    register()
    assert vllm.registry.models[MTP_DRAFT] == "stock"


def test_a_broken_installation_never_raises(monkeypatch: pytest.MonkeyPatch, shown: Shown) -> None:
    monkeypatch.setitem(sys.modules, "vllm_qwen36_plugin.features", None)
    register()
    assert "vllm-qwen36-plugin is off" in shown()


def test_a_config_map_of_another_shape_is_a_compat_error(vllm: SimpleNamespace) -> None:
    vllm.map[TARGETS[0]] = object
    with pytest.raises(CompatError, match="verify_and_update_config"):
        add_config_check(TARGETS[0], "x", lambda _: None)


def test_a_feature_is_installed_on_its_platform_alone_and_one_that_fails_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    installed: list[str] = []

    def broken() -> None:
        raise RuntimeError("of something")

    table = (
        features.Feature("first", broken),
        features.Feature("second", lambda: installed.append("any")),
        features.Feature("third", lambda: installed.append("cpu"), "cpu"),
        features.Feature("fourth", lambda: installed.append("cuda"), "cuda"),
    )
    monkeypatch.setattr(features, "FEATURES", table)
    monkeypatch.setattr(features, "_warned", set())
    for platform in ("cuda", "cpu", "other"):
        monkeypatch.setattr(features, "_platform", lambda platform=platform: platform)
        register()
    assert installed == ["any", "cuda", "any", "cpu", "any"]
    assert shown() == "WARNING vllm-qwen36-plugin: first is off because of something"


def test_a_vllm_without_platforms_turns_off_what_needs_one(
    monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    installed: list[str] = []
    table = (
        features.Feature("everywhere", lambda: installed.append("any")),
        features.Feature("prefill", lambda: installed.append("cuda"), "cuda"),
    )
    monkeypatch.setattr(features, "FEATURES", table)
    monkeypatch.setattr(features, "_warned", set())
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    register()
    assert installed == ["any"]
    assert shown().startswith("WARNING vllm-qwen36-plugin: prefill is off because")


def test_the_checks_before_start_exist_and_pass_a_config_that_asks_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are named in strings, and imported when they run."""
    pytest.importorskip("torch")
    checks: dict[str, Callable[[Any], None]] = {}
    monkeypatch.setattr(
        "vllm_qwen36_plugin.upstream.config_map.add_config_check",
        lambda architecture, name, check: checks.update({name: check}),
    )
    for feature in features.FEATURES:
        if feature.install.__qualname__.startswith("_checked"):
            feature.install()
    assert set(checks) == {"report", "mtp", "drafts", "act-order", "prefill", "triton"}
    # It publishes in this process; tests of its own do that.
    del checks["report"]
    monkeypatch.setenv("TRITON_CACHE_DIR", "named by the user")
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(model="nowhere", revision=None, quantization=None),
        load_config=SimpleNamespace(load_format="auto", download_dir=None),
        speculative_config=None,
        additional_config={},
    )
    for check in checks.values():
        check(vllm_config)


PROBE = """
import json, sys
import vllm_qwen36_plugin
entry = sorted(m for m in sys.modules if m.split('.')[0] in HEAVY)
import vllm.model_executor.models.registry, vllm.model_executor.models.config
before = set(sys.modules)
vllm_qwen36_plugin.register()
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
import torch
print(json.dumps({
    "entry": entry,
    "register": sorted(set(sys.modules) - before),
    "cuda": torch.cuda.is_initialized(),
    "hooked": sorted(k for k, v in MODELS_CONFIG_MAP.items() if hasattr(v, "qwen36_checks")),
}))
""".replace("HEAVY", "{'vllm', 'torch', 'gptq_hybrid', 'pluggy', 'numpy', 'logging'}")


def test_registering_imports_nothing_but_a_few_modules_of_its_own() -> None:
    """Cost by what is loaded: no model code, no checkpoint package, no CUDA. Against the real vLLM."""
    pytest.importorskip("vllm")
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["entry"] == []
    assert set(report["register"]) == {
        # On CPUs only; torch and ctypes are all it imports, and vLLM's platform has had both.
        "vllm.utils.cpu_triton_utils",
        "vllm_qwen36_plugin.architectures",
        "vllm_qwen36_plugin.log",
        "vllm_qwen36_plugin.report",
        "vllm_qwen36_plugin.report.notes",
        "vllm_qwen36_plugin.report.noting",
        "vllm_qwen36_plugin.features",
        "vllm_qwen36_plugin.act_order",
        "vllm_qwen36_plugin.act_order.claim",
        "vllm_qwen36_plugin.act_order.register",
        "vllm_qwen36_plugin.upstream",
        "vllm_qwen36_plugin.upstream.config_map",
        "vllm_qwen36_plugin.cpu",
        "vllm_qwen36_plugin.cpu.sampling",
        "vllm_qwen36_plugin.upstream.model_registry",
        "vllm_qwen36_plugin.errors",
        # What makes names in refusals and log lines safe to print.
        "gptq_hybrid",
        "gptq_hybrid.common",
        "gptq_hybrid.common.text",
    }
    assert report["cuda"] is False
    assert report["hooked"] == sorted(TARGETS)
