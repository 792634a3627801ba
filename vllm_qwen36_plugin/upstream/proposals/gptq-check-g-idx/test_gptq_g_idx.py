# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""g_idx of GPTQ checkpoints: what is static loads, what permutes is refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.model_executor.models.utils import AutoWeightsLoader

GROUP_SIZE = 32
NATURAL = torch.arange(128, dtype=torch.int32) // GROUP_SIZE
CONFIG = {"bits": 4, "group_size": GROUP_SIZE, "sym": True, "desc_act": False}


class Model(torch.nn.Module):
    def __init__(self, quant_config):
        super().__init__()
        self.quant_config = quant_config
        self.proj = torch.nn.Module()
        self.proj.qweight = torch.nn.Parameter(
            torch.zeros(16, 8, dtype=torch.int32), requires_grad=False
        )


@pytest.fixture
def load(tmp_path):
    """Write a checkpoint of one module and load it as its config says."""

    def _load(g_idx, **config):
        path = tmp_path / "model.safetensors"
        qweight = torch.ones(16, 8, dtype=torch.int32)
        save_file({"proj.qweight": qweight, "proj.g_idx": g_idx}, path)
        model = Model(AutoGPTQConfig.from_config({**CONFIG, **config}))
        weights = load_file(path).items()
        return AutoWeightsLoader(model).load_weights(weights), model

    return _load


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"desc_act": True, "static_groups": True},
        {"desc_act": True, "meta": {"static_groups": True}},
    ],
    ids=["no_order", "autogptq_static", "gptqmodel_static"],
)
def test_natural_order_loads(load, config):
    loaded, model = load(NATURAL, **config)

    assert loaded == {"proj.qweight"}
    assert not model.quant_config.desc_act
    assert bool((model.proj.qweight == 1).all())


@pytest.mark.parametrize(
    "config",
    [{}, {"desc_act": True, "static_groups": True}],
    ids=["no_order", "static"],
)
def test_permuting_g_idx_is_refused_whatever_the_config_says(load, config):
    permuted = NATURAL[torch.randperm(128, generator=torch.Generator().manual_seed(0))]
    with pytest.raises(ValueError, match=r"proj\.g_idx.*desc_act=True"):
        load(permuted, **config)


def test_dynamic_groups_are_still_refused_by_the_config():
    with pytest.raises(ValueError, match="no longer supported"):
        AutoGPTQConfig.from_config({**CONFIG, "desc_act": True})
