"""The layout derived from config.json names exactly the tensors that real checkpoints hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint, LinearSpec, layout_for
from gptq_hybrid.common.errors import CheckpointError, UnsupportedArchitectureError
from gptq_hybrid.demo.builder import DemoCheckpoint

TEXT_27B: dict[str, Any] = {
    "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 64, "full_attention_interval": 4,
    "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256, "linear_num_key_heads": 16,
    "linear_num_value_heads": 48, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4, "vocab_size": 248320, "mtp_num_hidden_layers": 1,
}  # fmt: skip
VISION_27B = {
    "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 5120, "patch_size": 16, "depth": 27,
    "temporal_patch_size": 2, "spatial_merge_size": 2, "num_position_embeddings": 2304,
}  # fmt: skip
CONFIG_27B = {"model_type": "qwen3_5", "text_config": TEXT_27B, "vision_config": VISION_27B}


def test_27b_has_the_published_numbers_of_tensors() -> None:
    layout = layout_for(CONFIG_27B)
    assert len(layout.quantized) + len(layout.plain) == 851
    assert len(layout.vision) == 333
    assert len(layout.mtp) == 15


def test_27b_quantizes_the_published_number_of_parameters() -> None:
    parameters = sum(linear.in_features * linear.out_features for linear in layout_for(CONFIG_27B).quantized)
    assert round(parameters / 1e9, 2) == 24.33


def test_27b_fuses_to_the_gemm_shapes_that_vllm_runs() -> None:
    layout = layout_for(CONFIG_27B)
    out = {linear.name: linear.out_features for linear in layout.quantized}
    widths = {
        fused.name.rpartition(".")[2]: sum(out[shard] for shard in fused.shards) for fused in layout.fused
    }
    assert widths == {"qkv_proj": 14336, "in_proj_qkvz": 16384, "gate_up_proj": 34816}


@pytest.mark.parametrize("text_only", [False, True])
def test_layout_equals_what_a_checkpoint_of_the_architecture_holds(
    build: Callable[..., DemoCheckpoint], text_only: bool
) -> None:
    checkpoint = Checkpoint.open(build(text_only=text_only).path)
    expected = {spec.name: spec.shape for spec in layout_for(checkpoint.config).dense}
    assert expected == {name: info.shape for name, info in checkpoint.loaded.items()}


def test_explicit_layer_types_win_over_the_interval() -> None:
    text = {**TEXT_27B, "num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]}
    names = {linear.name for linear in layout_for({**CONFIG_27B, "text_config": text}).quantized}
    assert "model.language_model.layers.0.self_attn.q_proj" in names
    assert "model.language_model.layers.1.linear_attn.in_proj_qkv" in names


def test_tied_embeddings_have_no_lm_head() -> None:
    text = {**TEXT_27B, "tie_word_embeddings": True}
    assert "lm_head.weight" not in {
        spec.name for spec in layout_for({**CONFIG_27B, "text_config": text}).plain
    }


def test_the_heads_are_linears_of_their_own() -> None:
    layout = layout_for(CONFIG_27B)
    assert layout.output_head == LinearSpec("lm_head", 248320, 5120)
    assert layout.mtp_linears[0] == LinearSpec("mtp.fc", 5120, 10240)
    assert len(layout.mtp_linears) == 8
    tied = layout_for({**CONFIG_27B, "text_config": {**TEXT_27B, "tie_word_embeddings": True}})
    assert tied.output_head is None
    without = layout_for({**CONFIG_27B, "text_config": {**TEXT_27B, "mtp_num_hidden_layers": 0}})
    assert without.mtp_linears == []


def test_a_layout_takes_the_prefix_that_the_tensors_have() -> None:
    multimodal, text_only = layout_for(CONFIG_27B), layout_for({"model_type": "qwen3_5_text", **TEXT_27B})
    long, short = "model.language_model.layers.0.linear_attn.A_log", "model.layers.0.linear_attn.A_log"
    for layout, own, other in ((multimodal, long, short), (text_only, short, long)):
        renamed = {spec.name for spec in layout.as_named_in([other]).dense}
        assert other in renamed
        assert own not in renamed
        for names in ([own], [own, other], [], ["lm_head.weight"]):
            assert layout.as_named_in(names) is layout


@pytest.mark.parametrize("bad", [None, 0, -1, "5120", True])
def test_an_absurd_dimension_is_named(bad: Any) -> None:
    with pytest.raises(CheckpointError, match="hidden_size"):
        layout_for({**CONFIG_27B, "text_config": {**TEXT_27B, "hidden_size": bad}})


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="llama"):
        layout_for({"model_type": "llama"})
