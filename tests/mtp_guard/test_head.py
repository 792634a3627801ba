"""What the worker demands of a head, on plain tensors: the forms a head may come in, and the damage it may have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.doctor import check_mtp
from tests.tiny_checkpoints import CONFIG, random_head, write_checkpoint
from vllm_qwen36_plugin.mtp_guard import head
from vllm_qwen36_plugin.mtp_guard.head import Arrival

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
EXPECTED = head.expected_tensors(CONFIG)
FC, GATE, DOWN = "mtp.fc.weight", "mtp.layers.0.mlp.gate_proj.weight", "mtp.layers.0.mlp.down_proj.weight"


def arrivals(*without: str) -> dict[str, Arrival]:
    return {n: Arrival(tuple(t.shape), t.dtype) for n, t in random_head().items() if n not in without}


def test_the_renamed_draft_config_calls_for_the_same_fifteen_tensors() -> None:
    renamed = {k: v for k, v in CONFIG.items() if k != "mtp_num_hidden_layers"} | {
        "model_type": "qwen3_5_mtp"
    }
    assert head.expected_tensors(renamed) == EXPECTED
    assert len(EXPECTED) == 15


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("mtp.fc.weight", "mtp.fc.weight"),
        ("model.mtp.fc.weight", "mtp.fc.weight"),
        ("model.layers.0.mlp.up_proj.weight", None),
        ("model.mtpx.fc.weight", None),
    ],
)
def test_head_tensors_are_known_by_their_mtp_component(name: str, own: str | None) -> None:
    assert head.checkpoint_name(name) == own


def test_a_shard_of_a_fused_parameter_is_missed_by_name() -> None:
    assert head.missing(EXPECTED, arrivals(GATE), PACKED) == [GATE]


@pytest.mark.parametrize(
    "parts",
    [
        ("qweight", "qzeros", "scales", "g_idx"),
        ("weight_packed", "weight_scale", "weight_shape"),
        ("weight", "weight_scale_inv"),
        ("W_q",),
    ],
)
def test_quantized_forms_of_a_matrix_count_as_there(parts: tuple[str, ...]) -> None:
    quantized = arrivals(DOWN) | {
        DOWN.replace("weight", part): Arrival((4, 4), torch.int32) for part in parts
    }
    assert head.missing(EXPECTED, quantized, PACKED) == []
    assert head.misshapen(EXPECTED, {k: v for k, v in quantized.items() if k != DOWN}) == []


def test_scales_alone_are_not_a_matrix() -> None:
    only_scales = arrivals(DOWN) | {DOWN.replace("weight", "scales"): Arrival((4, 4), torch.float16)}
    assert head.missing(EXPECTED, only_scales, PACKED) == [DOWN]


def test_an_already_fused_matrix_stands_for_its_shards() -> None:
    up = GATE.replace("gate_proj", "up_proj")
    fused = arrivals(GATE, up) | {
        GATE.replace("gate_proj", "gate_up_proj"): Arrival((128, 32), torch.bfloat16)
    }
    assert head.missing(EXPECTED, fused, PACKED) == []


def test_a_taller_matrix_is_noticed_though_vllm_would_take_its_first_rows() -> None:
    problems = head.misshapen(EXPECTED, arrivals() | {GATE: Arrival((128, 32), torch.bfloat16)})
    assert problems == [f"{GATE} is [128, 32]; the model calls for [64, 32]"]


def test_packed_integers_may_have_a_shape_of_their_own() -> None:
    assert head.misshapen(EXPECTED, arrivals() | {DOWN: Arrival((32, 32), torch.uint8)}) == []


@pytest.mark.parametrize(("parameter", "wrong"), [(torch.bfloat16, True), (torch.float8_e4m3fn, False)])
def test_fp8_is_wrong_only_where_its_scales_were_dropped(parameter: torch.dtype, wrong: bool) -> None:
    came = {GATE: Arrival((64, 32), torch.float8_e4m3fn)}
    loaded = {"model.layers.0.mlp.gate_up_proj.weight": torch.zeros(128, 32, dtype=parameter)}
    assert bool(head.cast_raw(came, loaded, PACKED)) is wrong


class Model(nn.Module):
    """A stand-in with the names of vLLM's draft."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(4, 4)
        self.model.fc = nn.Linear(8, 4, bias=False)
        self.model.norm = nn.LayerNorm(4, bias=False)
        self.model.k_scale = nn.Parameter(torch.tensor(-1.0))
        self.lm_head = nn.Linear(4, 4, bias=False)


def test_embeddings_and_lm_head_and_cache_scales_are_not_the_head() -> None:
    assert set(head.head_parameters(Model())) == {"model.fc.weight", "model.norm.weight"}


def test_a_parameter_the_loader_does_not_report_is_noticed() -> None:
    parameters = head.head_parameters(Model())
    assert head.not_loaded(parameters, {"model.norm.weight"}, ()) == ["model.fc.weight"]
    assert head.not_loaded(parameters, {"model.norm.weight"}, ["model.fc"]) == []
    assert head.not_loaded(parameters, None, ()) == []


def test_one_zero_shard_of_a_fused_matrix_is_noticed() -> None:
    fused = torch.cat([torch.zeros(3, 4), torch.eye(5, 4)])
    assert head.bad_values({"m.weight": fused}, {"m": [3, 5]}) == ["m.weight (shard 0) holds only zeros"]
    assert head.bad_values({"m.weight": fused}, {"m": [8]}) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn])
def test_zeros_and_nan_are_noticed_in_every_float(dtype: torch.dtype) -> None:
    nan = torch.ones(4, 4)
    nan[3, 3] = float("nan")
    problems = head.bad_values({"a.weight": torch.zeros(4, 4).to(dtype), "b.weight": nan.to(dtype)}, {})
    assert problems == ["a.weight holds only zeros", "b.weight holds NaN or infinite values"]


def test_a_matrix_larger_than_a_chunk_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_CHUNK", 8)
    late = torch.zeros(9, 4)
    late[8, 3] = 1
    assert head.bad_values({"a.weight": late}, {}) == []
    late[8, 3] = float("inf")
    assert head.bad_values({"a.weight": late}, {}) == ["a.weight holds NaN or infinite values"]


def test_zero_norms_meta_tensors_and_zero_points_are_fine() -> None:
    fine = {
        "norm.weight": torch.zeros(4),
        "a.weight": torch.zeros(4, 4, device="meta"),
        "a.qweight": torch.arange(16, dtype=torch.int32).view(4, 4),
        "a.qzeros": torch.zeros(4, 1, dtype=torch.int32),
        "a.weight_scale": torch.ones(4, 1),
    }
    assert head.bad_values(fine, {}) == []


def test_scales_of_zero_and_a_matrix_of_one_value_are_noticed() -> None:
    bad = {"a.weight_scale": torch.zeros(4, 1), "b.weight": torch.full((4, 4), 0.5)}
    assert head.bad_values(bad, {}) == [
        "a.weight_scale holds only zeros",
        "b.weight holds one value over and over",
    ]


# What a head may hold, by tensor: the two checks must say the same of it, the one before start and the worker's.
FILLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "a half": lambda t: torch.full_like(t, 0.5),
    "one NaN": lambda t: torch.where(torch.arange(t.numel()).view(t.shape) == t.numel() // 2, torch.nan, t),
    "one infinity at the end": lambda t: torch.where(
        torch.arange(t.numel()).view(t.shape) == t.numel() - 1, torch.inf, t
    ),
    "as it was": torch.clone,
}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(
    "name", [GATE, "mtp.fc.weight", "mtp.norm.weight", "mtp.layers.0.self_attn.q_norm.weight"]
)
def test_the_checks_before_and_after_loading_say_the_same(tmp_path: Path, name: str, fill: str) -> None:
    tensors = random_head()
    tensors[name] = FILLS[fill](tensors[name])
    folder = write_checkpoint(tmp_path, tensors)
    before = [f for f in check_mtp(Checkpoint.open(folder)) if f.rule == "mtp-values"]
    after = head.bad_values({name: tensors[name]}, {})
    assert [f.message.partition(" in mtp.safetensors ")[2] for f in before] == [
        problem.removeprefix(f"{name} ") for problem in after
    ]
