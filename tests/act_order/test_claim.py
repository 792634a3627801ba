"""Which checkpoints the plugin's GPTQ config claims, and what it tells vLLM of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gptq_hybrid.checkpoint.quantization import asks_for_act_order
from gptq_hybrid.doctor import VllmRelease
from vllm_qwen36_plugin.act_order import claim

HYBRID = SimpleNamespace(architectures=["Qwen3_5ForConditionalGeneration"])
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
ACT_ORDER = {**GPTQ, "desc_act": True}


@pytest.fixture(autouse=True)
def vllm_without_act_order(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    from vllm_qwen36_plugin.upstream import gptq

    monkeypatch.setattr(gptq, "stock_serves_act_order", lambda: False)


@pytest.mark.parametrize(
    "architecture", ["Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM", "Qwen3_5MTP"]
)
@pytest.mark.parametrize("user", [None, "gptq", "gptq_marlin", "auto_gptq", claim.NAME])
def test_act_order_of_the_family_is_claimed(architecture: str, user: str | None) -> None:
    assert claim.claims(ACT_ORDER, user, SimpleNamespace(architectures=[architecture]))


@pytest.mark.parametrize(
    ("config", "user", "hf_config"),
    [
        ({**GPTQ, "desc_act": False}, None, HYBRID),
        (GPTQ, None, HYBRID),
        ({**ACT_ORDER, "group_size": -1}, None, HYBRID),
        ({**ACT_ORDER, "quant_method": "awq"}, None, HYBRID),
        (ACT_ORDER, "moe_wna16", HYBRID),
        (ACT_ORDER, None, SimpleNamespace(architectures=["LlamaForCausalLM"])),
        (ACT_ORDER, None, SimpleNamespace(architectures=None)),
        (ACT_ORDER, None, None),
    ],
    ids=[
        "off",
        "unsaid",
        "one-group",
        "awq",
        "user-says-other",
        "other-model",
        "no-architecture",
        "no-config",
    ],
)
def test_everything_else_is_left_to_vllm(config: dict[str, Any], user: str | None, hf_config: Any) -> None:
    assert not claim.claims(config, user, hf_config)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A vLLM with act order of its own, of some version, on some machine."""
    from vllm.platforms import current_platform

    import gptq_hybrid.doctor
    from vllm_qwen36_plugin.upstream import gptq

    def there_is(version: str, *, cuda: bool = True, devices: int = 1, kernels: bool = True) -> None:
        monkeypatch.setattr(gptq, "stock_serves_act_order", lambda: True)
        monkeypatch.setattr(gptq_hybrid.doctor, "installed_vllm", lambda: VllmRelease(version))
        monkeypatch.setattr(type(current_platform), "is_cuda", lambda _: cuda)
        monkeypatch.setattr(type(current_platform), "device_count", lambda _: devices, raising=False)
        monkeypatch.setattr(gptq, "stock_kernels_run_here", lambda: kernels)

    return there_is


@pytest.mark.parametrize("version", ["0.19.1", "0.25.0", "0.29.0"])
def test_a_vllm_that_serves_act_order_itself_is_left_alone(
    version: str, installed: Callable[..., None]
) -> None:
    installed(version)
    assert not claim.claims(ACT_ORDER, None, HYBRID)


@pytest.mark.parametrize("version", ["0.26.0", "0.26.1+cu130"])
def test_where_ours_was_measured_faster_it_is_taken(version: str, installed: Callable[..., None]) -> None:
    installed(version)
    assert claim.claims(ACT_ORDER, None, HYBRID)


@pytest.mark.parametrize("other", [{"cuda": False}, {"devices": 2}, {"devices": 0}])
def test_elsewhere_than_on_one_nvidia_gpu_it_is_not(other: Any, installed: Callable[..., None]) -> None:
    installed("0.26.0", **other)
    assert not claim.claims(ACT_ORDER, None, HYBRID)


@pytest.mark.parametrize("user", [None, "gptq_marlin"])
def test_where_vllms_kernel_is_not_in_the_library_ours_serves(
    user: str | None, installed: Callable[..., None]
) -> None:
    installed("0.29.0", cuda=False, kernels=False)
    assert claim.claims(ACT_ORDER, user, HYBRID)


@pytest.mark.parametrize(
    ("cpu", "architecture", "avx512", "there"),
    [
        (True, "X86", False, False),
        (True, "X86", True, True),
        (True, "ARM", False, True),
        (False, "X86", False, True),
    ],
)
def test_vllms_kernel_for_4_bits_needs_avx512_on_x86(
    monkeypatch: pytest.MonkeyPatch, cpu: bool, architecture: str, avx512: bool, there: bool
) -> None:
    import torch
    from vllm.platforms import CpuArchEnum, current_platform

    from vllm_qwen36_plugin.upstream import gptq

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: cpu)
    arch = CpuArchEnum[architecture]
    monkeypatch.setattr(type(current_platform), "get_cpu_architecture", lambda *_: arch)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    assert gptq.stock_kernels_run_here() is there


@pytest.mark.parametrize("user", ["gptq", "gptq_marlin", "auto_gptq"])
def test_a_user_who_names_a_method_of_vllm_gets_it(user: str, installed: Callable[..., None]) -> None:
    installed("0.26.0")
    assert not claim.claims(ACT_ORDER, user, HYBRID)


def test_a_user_who_names_ours_gets_it_on_every_version(installed: Callable[..., None]) -> None:
    installed("0.22.0", devices=4)
    assert claim.claims(ACT_ORDER, claim.NAME, HYBRID)


def test_a_rule_that_asks_for_it_counts_and_an_exclusion_does_not() -> None:
    off = {**GPTQ, "desc_act": False}
    assert asks_for_act_order({**off, "dynamic": {"+:.*down_proj": {"desc_act": True}}})
    assert asks_for_act_order({**ACT_ORDER, "group_size": -1, "dynamic": {"a": {"group_size": 64}}})
    assert not asks_for_act_order({**off, "dynamic": {"-:.*down_proj": {"desc_act": True}}})
    assert not asks_for_act_order({**off, "dynamic": None})


def test_vllm_is_told_of_no_act_order_anywhere_and_the_checkpoints_config_is_not_touched() -> None:
    config = {**ACT_ORDER, "dynamic": {"+:a": {"desc_act": True, "bits": 8}, "-:b": {}}}
    assert claim.without_act_order(config) == {
        **ACT_ORDER,
        "desc_act": False,
        "dynamic": {"+:a": {"bits": 8}, "-:b": {}},
    }
    assert config["desc_act"] is True
    assert config["dynamic"]["+:a"]["desc_act"] is True


@pytest.mark.engine
def test_vllm_finds_it_by_itself_and_registering_is_cheap() -> None:
    """In a fresh process: registering imports none of vLLM's GPTQ code; asking for the config does."""
    script = """
import sys
from vllm_qwen36_plugin.act_order import claim
from vllm_qwen36_plugin.act_order.register import register
register(); register()
heavy = "vllm.model_executor.layers.quantization.auto_gptq"
print("heavy", heavy in sys.modules)
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
print("times", QUANTIZATION_METHODS.count(claim.NAME))
config = get_quantization_config(claim.NAME).from_config(
    {"bits": 4, "group_size": 128, "sym": True, "desc_act": True, "quant_method": "gptq"})
print("made", type(config).__name__, config.get_name(), config.desc_act)
import pickle, copy
print("siblings", copy.deepcopy(config).siblings is config.siblings)
print("pickled", type(pickle.loads(pickle.dumps(config))).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines == [
        "heavy False",
        "times 1",
        f"made ActOrderConfig {claim.NAME} False",
        "siblings True",
        "pickled ActOrderConfig",
    ]
