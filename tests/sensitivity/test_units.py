"""What counts as one module."""

from __future__ import annotations

from gptq_hybrid.sensitivity import list_units
from gptq_hybrid.streaming import CheckpointWeights


def test_what_vllm_loads_as_one_is_one(weights: CheckpointWeights) -> None:
    by_name = {u.name: [linear.name for linear in u.linears] for u in list_units(weights.layout, mtp=True)}
    layers = "model.language_model.layers"
    assert by_name[f"{layers}.3.self_attn.qkv_proj"] == [f"{layers}.3.self_attn.{x}_proj" for x in "qkv"]
    assert by_name[f"{layers}.0.linear_attn.in_proj_qkvz"] == [
        f"{layers}.0.linear_attn.in_proj_{x}" for x in ("qkv", "z")
    ]
    assert by_name["mtp.layers.0.mlp.gate_up_proj"] == [f"mtp.layers.0.mlp.{x}_proj" for x in ("gate", "up")]
    assert by_name["mtp.layers.0.self_attn.qkv_proj"] == [f"mtp.layers.0.self_attn.{x}_proj" for x in "qkv"]
    assert by_name["mtp.fc"] == ["mtp.fc"]


def test_every_linear_is_in_exactly_one_unit(weights: CheckpointWeights) -> None:
    units = [u for u in list_units(weights.layout, mtp=False) if u.place == "layer"]
    names = [linear.name for u in units for linear in u.linears]
    assert sorted(names) == sorted(linear.name for linear in weights.layout.quantized)


def test_the_mtp_head_comes_by_module_and_as_a_whole(weights: CheckpointWeights) -> None:
    draft = [u for u in list_units(weights.layout, mtp=True) if u.place == "mtp"]
    assert draft[-1].name == "mtp"
    assert sum(u.parameters for u in draft[:-1]) == draft[-1].parameters
    assert not any(u.place == "mtp" for u in list_units(weights.layout, mtp=False))
