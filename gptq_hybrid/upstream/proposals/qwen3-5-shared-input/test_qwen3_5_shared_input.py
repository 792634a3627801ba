# SPDX-FileCopyrightText: 2026 ModelCloud.ai
# SPDX-License-Identifier: Apache-2.0

from types import SimpleNamespace

import pytest
import torch
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer

from gptqmodel.models.definitions.qwen3_5 import Qwen3_5QModel
from gptqmodel.models.definitions.qwen3_5_text import Qwen3_5TextQModel
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ


DEFINITIONS = {"qwen3_5": Qwen3_5QModel, "qwen3_5_text": Qwen3_5TextQModel}
FUSED = [
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ["linear_attn.in_proj_qkv", "linear_attn.in_proj_z"],
    ["mlp.gate_proj", "mlp.up_proj"],
]


@pytest.mark.parametrize("model_type", DEFINITIONS)
def test_projections_of_one_input_are_one_subset(model_type):
    layers = DEFINITIONS[model_type].simple_layer_modules(SimpleNamespace(model_type=model_type), None)

    assert ["linear_attn.in_proj_qkv", "linear_attn.in_proj_z"] in layers
    assert layers.index(["linear_attn.out_proj"]) > layers.index(FUSED[1])


@pytest.mark.parametrize("model_type", DEFINITIONS)
def test_projections_of_one_input_share_a_hessian(model_type):
    plan = DEFINITIONS[model_type].shared_input_plan(SimpleNamespace(model_type=model_type), None)

    for names in FUSED:
        assert {plan.leader_for(name) for name in names} == {names[0]}


@torch.no_grad()
def test_tagged_projections_get_the_same_tensor():
    for layer_type, names in (("full_attention", FUSED[0] + FUSED[2]), ("linear_attention", FUSED[1] + FUSED[2])):
        config = Qwen3_5TextConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            linear_num_key_heads=1,
            linear_num_value_heads=2,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            vocab_size=16,
            layer_types=[layer_type],
        )
        config._attn_implementation = "sdpa"
        layer = Qwen3_5DecoderLayer(config, 0).eval()
        seen = {}
        for name in names:
            layer.get_submodule(name).register_forward_pre_hook(
                lambda module, args, name=name, seen=seen: seen.__setitem__(name, args[0])
            )
        rotation = (torch.ones(1, 4, 4), torch.zeros(1, 4, 4))
        layer(torch.randn(1, 4, 32), position_embeddings=rotation)

        for group in FUSED:
            tensors = [seen[name] for name in group if name in seen]
            assert all(torch.equal(tensor, tensors[0]) for tensor in tensors)


@torch.no_grad()
def test_shared_hessian_gives_the_weights_of_a_hessian_of_its_own():
    torch.manual_seed(0)
    inputs = torch.randn(1, 64, 32)
    first, second = (torch.nn.Linear(32, 16, bias=False) for _ in range(2))
    solvers = []
    for module in (first, second, second):
        solver = GPTQ(module, qcfg=QuantizeConfig(bits=4, group_size=16, desc_act=True, offload_to_disk=False))
        solver.quantizer.configure(perchannel=True)
        solver.add_batch(inputs, None)
        solvers.append(solver)
    leader, own, follower = solvers
    leader.finalize_hessian()
    follower.H = leader.H.clone()

    for mine, shared in zip(own.quantize()[:4], follower.quantize()[:4]):
        assert torch.equal(mine, shared)
