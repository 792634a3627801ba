# SPDX-FileCopyrightText: 2026 ModelCloud.ai
# SPDX-License-Identifier: Apache-2.0

import sys

import pytest

from gptqmodel.models import auto
from gptqmodel.models.base import BaseQModel


CONFIG = '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
PLUGIN = """
from gptqmodel.models import auto

calls = 0

def register():
    global calls
    calls += 1
    auto.MODEL_MAP["llama"] = type("ToyQModel", (auto.MODEL_MAP["llama"],), {})

def fail():
    raise RuntimeError("of another version")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package that names functions in the entry-point group."""

    def _install(**functions):
        site = tmp_path / "site"
        info = site / "toy_definitions-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "toy_definitions.py").write_text(PLUGIN)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-definitions\nVersion: 1.0\n")
        lines = [f"{name} = toy_definitions:{function}" for name, function in functions.items()]
        (info / "entry_points.txt").write_text("\n".join(["[gptqmodel.model_definitions]", *lines]) + "\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, "toy_definitions", raising=False)
        getattr(getattr(auto, "_load_definition_entry_points", None), "cache_clear", lambda: None)()

    monkeypatch.setattr(auto, "MODEL_MAP", dict(auto.MODEL_MAP))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(CONFIG)
    return _install


def test_a_package_adds_its_definition_once(install, tmp_path):
    install(toy="register")

    found = [auto.check_and_get_model_definition(str(tmp_path / "model")) for _ in range(2)]

    assert [definition.__name__ for definition in found] == ["ToyQModel", "ToyQModel"]
    assert sys.modules["toy_definitions"].calls == 1


def test_a_package_that_fails_is_left_out(install, tmp_path):
    install(broken="fail", toy="register")

    assert auto.check_and_get_model_definition(str(tmp_path / "model")).__name__ == "ToyQModel"


def test_without_packages_the_own_definitions_are_used(install, tmp_path):
    assert auto.check_and_get_model_definition(str(tmp_path / "model")).__name__ == "LlamaQModel"


def test_unknown_model_type_gets_the_base_definition(install, tmp_path, monkeypatch):
    monkeypatch.delitem(auto.MODEL_MAP, "llama")
    monkeypatch.setattr(auto, "SUPPORTED_MODELS", list(auto.MODEL_MAP))

    assert auto.check_and_get_model_definition(str(tmp_path / "model")) is BaseQModel
