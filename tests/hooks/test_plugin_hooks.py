"""Third parties extend the project through the same hooks that its own contributions come through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from gptq_hybrid.calibration import load_rows
from gptq_hybrid.checkpoint import Checkpoint, family_for, layout_for
from gptq_hybrid.checkpoint.families.qwen3_5 import QWEN3_5
from gptq_hybrid.cli import build_app
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import Fault, Finding, Inspection, Rule, Severity, check_mtp
from gptq_hybrid.doctor.place import gpu_profiles, profile_for
from gptq_hybrid.hooks import CalibrationSource, GpuProfile, get_plugin_manager, hookimpl


@pytest.fixture
def plugin() -> Iterator[SimpleNamespace]:
    """A namespace registered as a plugin for one test; its hooks are added by the test."""
    namespace = SimpleNamespace()
    yield namespace
    if get_plugin_manager().is_registered(namespace):
        get_plugin_manager().unregister(namespace)


def test_our_own_contributions_come_through_the_hooks() -> None:
    names = {name for name, _ in get_plugin_manager().list_name_plugin()}
    assert {"gptq_hybrid", "vllm_qwen36_plugin"} <= names
    assert any(profile.name == "L40S" for profile in gpu_profiles())
    assert profile_for("NVIDIA L40S") is not None


def test_a_plugin_adds_a_family(plugin: SimpleNamespace) -> None:
    @hookimpl
    def qwen36_families() -> list[Any]:
        def layout(config: Mapping[str, Any]) -> Any:
            return replace(QWEN3_5.layout(config), family="other")

        return [replace(QWEN3_5, name="other", model_types=("other",), layout=layout)]

    plugin.qwen36_families = qwen36_families
    get_plugin_manager().register(plugin)
    assert family_for({"model_type": "other"}).name == "other"
    assert family_for({"model_type": "qwen3_5"}).name == "qwen3_5"


def test_a_plugin_adds_a_rule(plugin: SimpleNamespace, original: DemoCheckpoint) -> None:
    def look(inspection: Inspection) -> list[Fault]:
        return [Fault("not on a Monday", file=inspection.checkpoint.location)]

    @hookimpl
    def qwen36_check_rules() -> list[Rule]:
        return [Rule("house-rule", "mtp", Severity.WARNING, "", "wait, {path}", look)]

    plugin.qwen36_check_rules = qwen36_check_rules
    get_plugin_manager().register(plugin)
    where = str(original.path)
    expected = Finding("house-rule", Severity.WARNING, "not on a Monday", f"wait, {where}", file=where)
    assert check_mtp(Checkpoint.open(original.path)) == [expected]


def test_a_plugin_adds_a_calibration_source(plugin: SimpleNamespace) -> None:
    @hookimpl
    def qwen36_calibration_sources() -> list[CalibrationSource]:
        def load(spec: str, count: int, seed: int) -> list[dict[str, Any]]:
            return [{"text": spec}] * count

        return [CalibrationSource("haiku", lambda spec: spec.startswith("haiku:"), load)]

    plugin.qwen36_calibration_sources = qwen36_calibration_sources
    get_plugin_manager().register(plugin)
    assert load_rows("haiku:frog", 2, 0) == [{"text": "haiku:frog"}] * 2


@pytest.mark.parametrize("last", [False, True])
def test_the_profile_registered_last_wins(plugin: SimpleNamespace, last: bool) -> None:
    ours = GpuProfile("ours", ("L40S",), (8, 9), 48.0, (), "measured: here")
    shipped = gpu_profiles()

    # pluggy's trylast: as if it had been registered before all others.
    @hookimpl(trylast=last)
    def qwen36_gpu_profiles() -> list[GpuProfile]:
        return [ours]

    plugin.qwen36_gpu_profiles = qwen36_gpu_profiles
    get_plugin_manager().register(plugin)
    assert gpu_profiles() == ([ours, *shipped] if last else [*shipped, ours])
    assert (profile_for("NVIDIA L40S") == ours) is not last


def test_a_plugin_adds_a_command(plugin: SimpleNamespace) -> None:
    @hookimpl
    def qwen36_commands(app: typer.Typer) -> None:
        app.command("wave")(lambda: None)

    plugin.qwen36_commands = qwen36_commands
    get_plugin_manager().register(plugin)
    assert "wave" in {command.name for command in build_app().registered_commands}


def test_layouts_do_not_depend_on_plugins_loaded_later(original: DemoCheckpoint) -> None:
    config = Checkpoint.open(original.path).config
    assert layout_for(config) == layout_for(config)
