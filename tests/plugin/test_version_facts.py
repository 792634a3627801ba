"""What the rules believe of vLLM releases, against the release installed here."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint.families.qwen3_5 import QWEN3_5
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor import VllmRelease, installed_vllm
from gptq_hybrid.doctor import vllm_releases as vllm_versions

CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


@pytest.fixture(scope="module")
def release() -> VllmRelease:
    installed = installed_vllm()
    assert installed is not None
    return installed


def test_the_installed_release_is_found_without_importing_it(release: VllmRelease) -> None:
    import vllm

    assert vllm.__version__.startswith(".".join(map(str, release.version.release)))


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ("0.30.0", "0.30", True),
        ("0.30", "0.30.0", True),
        ("0.30.0rc1", "0.30", True),
        ("0.29.3+cu130", "0.30", False),
        ("0.27.0", "0.27.1", False),
        ("0.100", "0.99", True),
    ],
)
def test_releases_are_compared_by_number(text: str, other: str, expected: bool) -> None:
    assert VllmRelease(text).at_least(other) is expected


def test_what_is_not_a_version_is_refused_at_once() -> None:
    with pytest.raises(HybridError, match="not a vLLM version"):
        VllmRelease("latest")


def test_every_parser_the_rules_name_exists_in_this_release(release: VllmRelease) -> None:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    tools = set(ToolParserManager.list_registered())
    thinking = set(ReasoningParserManager.list_registered())
    assert {n for n, since in vllm_versions.TOOL_PARSERS.items() if release.at_least(since)} <= tools
    assert {n for n, since in vllm_versions.REASONING_PARSERS.items() if release.at_least(since)} <= thinking


def test_the_registry_knows_the_classes_from_the_release_named(release: VllmRelease) -> None:
    from vllm import ModelRegistry

    supported = set(ModelRegistry.get_supported_archs())
    assert set(QWEN3_5.mtp_architectures) <= supported
    assert ("Qwen3_5ForCausalLM" in supported) is release.at_least(vllm_versions.TEXT_ONLY_SINCE)


def test_act_order_is_refused_from_the_release_named(release: VllmRelease) -> None:
    from vllm.model_executor.layers.quantization import get_quantization_config

    name = "auto_gptq" if release.at_least("0.22") else "gptq_marlin"
    make: Any = get_quantization_config(name).from_config
    make(dict(CONFIG))
    if release.at_least(vllm_versions.NO_ACT_ORDER):
        with pytest.raises(ValueError, match="desc_act"):
            make(CONFIG | {"desc_act": True})
        make(CONFIG | {"desc_act": True, "group_size": -1})
    else:
        make(CONFIG | {"desc_act": True})


MTP = "mtp.layers.0.mlp.down_proj"
GDN = "model.language_model.layers.0.linear_attn.out_proj"


@pytest.mark.parametrize(
    "ignore",
    [
        ["lm_head"],
        ["mtp"],
        ["re:^mtp.*"],
        ["re:.*linear_attn.*"],
        [r"re:model\.language_model.*"],
        [MTP],
        [GDN],
        ["re:("],
    ],
)
def test_compressed_tensors_ignore_lists_are_read_as_vllm_reads_them(ignore: list[str]) -> None:
    from vllm.model_executor.layers.quantization.compressed_tensors.utils import should_ignore_layer

    config = {"config_groups": {"g": {"targets": ["Linear"]}}, "ignore": ignore}
    for ours in (MTP, GDN):
        theirs = formats.vllm_name(ours)
        mapped = [formats.vllm_name(entry) for entry in ignore]
        try:
            ignored = should_ignore_layer(theirs, ignore=mapped)
        except Exception:  # noqa: BLE001 - a broken pattern ends vLLM; we take it for one that matches nothing
            ignored = False
        assert formats.COMPRESSED_TENSORS.declares(config, ours) is not ignored, ours


@pytest.mark.parametrize(
    "dynamic",
    [
        {},
        {r"-:^mtp\.": {}},
        {r"-:.*linear_attn.*": {}},
        {r"+:.*out_proj": {"bits": 8}, r"-:.*linear_attn.*": {}},
        {r".*down_proj": {"bits": 8}},
    ],
)
def test_dynamic_rules_are_read_as_vllm_reads_them(dynamic: dict[str, Any]) -> None:
    from types import SimpleNamespace

    from vllm.model_executor.layers.quantization.utils.gptq_utils import get_dynamic_override

    for ours in (MTP, GDN):
        override = get_dynamic_override(SimpleNamespace(dynamic=dynamic), formats.vllm_name(ours))
        declared = formats.GPTQ.declares(CONFIG | {"dynamic": dynamic}, ours)
        assert (declared is False) is (override is False)


@pytest.mark.parametrize("excluded", [[MTP], ["mtp"], [GDN], ["linear_attn"], ["visual"]])
def test_awq_and_fp8_lists_are_read_as_vllm_reads_them(excluded: list[str]) -> None:
    from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped

    mapped = [formats.vllm_name(entry) for entry in excluded]
    for ours in (MTP, GDN):
        theirs = formats.vllm_name(ours)
        substring = is_layer_skipped(theirs, mapped, match_mode="substring")
        exact = is_layer_skipped(theirs, mapped)
        assert formats.AWQ.declares({"modules_to_not_convert": excluded}, ours) is not substring
        assert formats.FP8.declares({"modules_to_not_convert": excluded}, ours) is not exact


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("language_model.model.layers.0.linear_attn.in_proj_qkvz", 8),
        ("language_model.model.layers.62.linear_attn.out_proj", 8),
        ("model.layers.62.linear_attn.out_proj", 8),
        ("language_model.model.layers.3.self_attn.qkv_proj", 4),
        ("language_model.model.layers.0.mlp.gate_up_proj", 4),
        ("language_model.lm_head", 8),
        ("lm_head", 8),
        ("mtp.layers.0.self_attn.qkv_proj", 4),
        ("mtp.fc", 4),
    ],
)
def test_vllm_gives_each_module_the_bits_that_recipe_and_writer_mean(name: str, bits: int) -> None:
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.model_executor.layers.quantization.utils.gptq_utils import override_config

    from gptq_hybrid.checkpoint import layout_for
    from gptq_hybrid.recipes import dynamic_rules
    from gptq_hybrid.recipes.packaging import Packaging
    from gptq_hybrid.writer._configs import _with_heads
    from tests.checkpoint.test_layout import CONFIG_27B

    layout = layout_for(CONFIG_27B)
    choices = {linear.name: 8 for linear in layout.quantized if ".linear_attn." in linear.name}
    saved = {**CONFIG, "dynamic": dynamic_rules(layout, choices)}
    written = _with_heads(saved, Packaging(lm_head_bits=8, mtp_bits=4), keep_mtp=True)
    made: Any = get_quantization_config("auto_gptq").from_config(written)
    assert made.lm_head_quantized is True
    override_config(made, name)
    assert (made.weight_bits, made.group_size) == (bits, 128)


def test_what_the_draft_does_with_the_config_is_as_the_rules_have_it(release: VllmRelease) -> None:
    """Read in vLLM's source, for building the draft takes an engine; the serving test does that."""
    import inspect

    from vllm.model_executor.models import qwen3_5_mtp

    source = inspect.getsource(qwen3_5_mtp)
    built_as_said = "quant_config=self.quant_config" in source
    assert built_as_said is release.at_least(vllm_versions.LM_HEAD_MTP_SINCE)
    means_all = 'k.startswith("-:") and "mtp" in k' in source
    assert means_all is release.at_least(vllm_versions.MTP_RULE_MEANS_ALL)
