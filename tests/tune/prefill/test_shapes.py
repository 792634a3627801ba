"""Which linears ``qwen36 tune prefill`` measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.full_size import CONFIG
from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.common.errors import HybridError, UnsupportedArchitectureError
from gptq_hybrid.demo.builder import DemoCheckpoint
from vllm_qwen36_plugin.tune.prefill.shapes import Linears, list_linears, read_linears

MINI = Path(__file__).parents[3] / "bench" / "mini" / "checkpoint"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
SHAPES_27B = [
    Linears(5120, 16384, 4, 128, ("in_proj_qkvz",), 48),
    Linears(6144, 5120, 4, 128, ("out_proj", "o_proj"), 64),
    Linears(5120, 34816, 4, 128, ("gate_up_proj",), 64),
    Linears(17408, 5120, 4, 128, ("down_proj",), 64),
    Linears(5120, 14336, 4, 128, ("qkv_proj",), 16),
]


def test_the_27b_without_a_checkpoint() -> None:
    assert read_linears(None) == SHAPES_27B


def test_the_27b_by_its_config() -> None:
    assert list_linears(CONFIG, CONFIG["quantization_config"]) == SHAPES_27B  # type: ignore[arg-type]


def test_every_weight_of_the_layers_is_in_one_of_them() -> None:
    layout = layout_for(CONFIG)
    total = sum(linear.out_features * linear.in_features for linear in layout.quantized)
    assert sum(kind.k * kind.n * kind.count for kind in list_linears(CONFIG)) == total


def test_an_original_is_taken_as_it_would_be_quantized(original: DemoCheckpoint) -> None:
    assert original.spec is not None
    linears = read_linears(str(original.path))
    assert {(kind.bits, kind.group_size) for kind in linears} == {(4, 128)}
    assert sum(kind.count for kind in linears) == 4 * original.spec.num_hidden_layers


def test_shapes_that_coincide_are_one() -> None:
    assert [(kind.name, kind.k, kind.n, kind.count) for kind in read_linears(str(MINI))] == [
        ("in_proj_qkvz, qkv_proj", 256, 1536, 8),
        ("out_proj, o_proj", 512, 256, 8),
        ("gate_up_proj", 256, 1280, 8),
        ("down_proj", 640, 256, 8),
    ]


def test_bits_and_groups_by_module() -> None:
    quantization = GPTQ | {
        "dynamic": {r"+:.*\.down_proj$": {"bits": 8, "group_size": 64}, r"-:.*\.out_proj$": {}}
    }
    by_name = {
        kind.name: (kind.bits, kind.group_size, kind.count) for kind in list_linears(CONFIG, quantization)
    }
    assert by_name["down_proj"] == (8, 64, 64)
    assert by_name["gate_up_proj"] == (4, 128, 64)
    assert by_name["o_proj"] == (4, 128, 16), "those of Gated-DeltaNet are left alone"


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True},
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "strategy": "group", "group_size": 128},
                }
            },
        },
    ],
)
def test_other_formats_of_the_same_kernels(quantization: dict[str, Any]) -> None:
    assert list_linears(CONFIG, quantization) == SHAPES_27B


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "quantized as awq"),
        ({"quant_method": "fp8"}, "quantized as fp8"),
        ({"quant_method": "unheard-of"}, "quantized as unheard-of"),
        (GPTQ | {"sym": False}, "asymmetric"),
        (GPTQ | {"bits": 3}, "not packed in 4 or 8 bits"),
        (GPTQ | {"dynamic": {"-:.": {}}}, "none of its linears is quantized"),
        (GPTQ | {"dynamic": {r"+:.*\.gate_proj$": {"bits": 8}}}, "the parts of"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq"}, "not packed in"),
    ],
)
def test_what_no_dense_route_takes(quantization: dict[str, Any], words: str) -> None:
    with pytest.raises(HybridError, match=words) as error:
        list_linears(CONFIG, quantization, "some/model")
    assert "some/model" in error.value.message
    assert error.value.remedy


def test_another_family() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="llama"):
        list_linears({"model_type": "llama"})


def test_only_the_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert read_linears(str(tmp_path)) == SHAPES_27B
    assert Checkpoint.open(tmp_path).on_disk == ()
