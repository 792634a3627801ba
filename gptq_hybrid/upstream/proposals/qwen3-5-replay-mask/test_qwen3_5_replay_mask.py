# SPDX-FileCopyrightText: 2026 ModelCloud.ai
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5TextRotaryEmbedding

from gptqmodel.models.definitions.qwen3_5 import Qwen3_5QModel
from gptqmodel.models.definitions.qwen3_5_text import Qwen3_5TextQModel


LENGTH = 6


def _layer(layer_type: str, attention: str):
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
    config._attn_implementation = attention
    torch.manual_seed(0)
    return Qwen3_5DecoderLayer(config, 0).eval(), Qwen3_5TextRotaryEmbedding(config), config


@torch.no_grad()
def _replay(definition, layer, rotary, hidden_states, padding):
    """Replay what layer 0, a linear-attention layer, was called with into `layer`."""
    positions = torch.arange(LENGTH).expand(hidden_states.shape[0], -1)
    captured = {"attention_mask": padding, "position_embeddings": rotary(hidden_states, positions)}
    kwargs = object.__new__(definition).prepare_layer_replay_kwargs(
        layer=layer,
        layer_input=[hidden_states],
        additional_inputs=captured,
        target_device=torch.device("cpu"),
    )
    return layer(hidden_states, **kwargs)


@pytest.mark.parametrize("definition", [Qwen3_5QModel, Qwen3_5TextQModel])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_full_attention_does_not_see_padding_or_the_future(definition, attention):
    layer, rotary, config = _layer("full_attention", attention)
    hidden_states = torch.randn(2, LENGTH, config.hidden_size)
    padding = torch.ones(2, LENGTH, dtype=torch.long)
    padding[1, 4:] = 0

    batched = _replay(definition, layer, rotary, hidden_states, padding)
    alone = _replay(definition, layer, rotary, hidden_states[1:, :4].repeat(1, 2, 1)[:, :LENGTH], None)

    torch.testing.assert_close(batched[1, :4], alone[0, :4])


@pytest.mark.parametrize("definition", [Qwen3_5QModel, Qwen3_5TextQModel])
def test_eager_attention_without_padding_is_causal(definition):
    layer, rotary, config = _layer("full_attention", "eager")
    hidden_states = torch.randn(1, LENGTH, config.hidden_size)
    changed = hidden_states.clone()
    changed[:, -1] += 1

    before, after = (_replay(definition, layer, rotary, inputs, None) for inputs in (hidden_states, changed))

    torch.testing.assert_close(before[:, :-1], after[:, :-1])


@pytest.mark.parametrize("definition", [Qwen3_5QModel, Qwen3_5TextQModel])
def test_linear_attention_keeps_the_mask_it_was_called_with(definition):
    layer, _, config = _layer("linear_attention", "sdpa")
    padding = torch.ones(1, LENGTH, dtype=torch.long)
    kwargs = object.__new__(definition).prepare_layer_replay_kwargs(
        layer=layer,
        layer_input=[torch.zeros(1, LENGTH, config.hidden_size)],
        additional_inputs={"attention_mask": padding},
        target_device=torch.device("cpu"),
    )
    assert kwargs["attention_mask"] is padding
