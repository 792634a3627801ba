# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""A fused parameter counts as loaded once all of its shards are."""

import pytest
import torch

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
)
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

MAPPER = WeightsMapper(
    orig_to_new_stacked={
        ".q_proj": (".qkv_proj", "q"),
        ".k_proj": (".qkv_proj", "k"),
        ".v_proj": (".qkv_proj", "v"),
        ".gate_proj": (".gate_up_proj", 0),
        ".up_proj": (".gate_up_proj", 1),
        ".in_proj_qkv": (".in_proj_qkvz", (0, 1, 2)),
        ".in_proj_z": (".in_proj_qkvz", 3),
    }
)
SHAPES = {
    "q_proj": (8, 4),
    "k_proj": (4, 4),
    "v_proj": (4, 4),
    "gate_proj": (6, 4),
    "up_proj": (6, 4),
    "in_proj_qkv": (12, 4),
    "in_proj_z": (4, 4),
}


@pytest.fixture(autouse=True)
def _without_tensor_parallel_group(monkeypatch):
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        common = {"bias": False, "params_dtype": torch.float32, "disable_tp": True}
        self.qkv_proj = QKVParallelLinear(4, 4, 2, 1, **common)
        self.gate_up_proj = MergedColumnParallelLinear(4, [6, 6], **common)
        self.in_proj_qkvz = MergedColumnParallelLinear(4, [4, 4, 4, 4], **common)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Layer()


def load(names):
    with set_current_vllm_config(VllmConfig()):
        model = Model()
    weights = [(f"layer.{name}.weight", torch.ones(SHAPES[name])) for name in names]
    return AutoWeightsLoader(model).load_weights(weights, mapper=MAPPER)


def test_all_shards_in_any_order():
    expected = {
        "layer.qkv_proj.weight",
        "layer.gate_up_proj.weight",
        "layer.in_proj_qkvz.weight",
    }
    assert load(SHAPES) == expected
    assert load(reversed(SHAPES)) == expected


@pytest.mark.parametrize(
    ("missing", "fused"),
    [
        ("k_proj", "layer.qkv_proj.weight"),
        ("gate_proj", "layer.gate_up_proj.weight"),
        ("up_proj", "layer.gate_up_proj.weight"),
        ("in_proj_z", "layer.in_proj_qkvz.weight"),
    ],
)
def test_fused_parameter_with_a_missing_shard_is_not_loaded(missing, fused):
    loaded = load([name for name in SHAPES if name != missing])
    assert fused not in loaded
    assert len(loaded) == 2


def test_fused_weight_in_the_checkpoint_is_loaded_at_once():
    with set_current_vllm_config(VllmConfig()):
        model = Model()
    weights = [("layer.gate_up_proj.weight", torch.ones(12, 4))]
    assert AutoWeightsLoader(model).load_weights(weights) == {
        "layer.gate_up_proj.weight"
    }
