"""Dense tensors out of packed ones: what is computed with is what the checkpoint holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gptq_hybrid.streaming._weights as weights_module
from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.streaming import CheckpointWeights, MtpHead, OutputHead, Overlay, TextStack
from tests.streaming.rounded import CHECKPOINT, copy_with, read_config, read_tensors

CPU = torch.device("cpu")
DOWN = "model.language_model.layers.0.mlp.down_proj."


def edited(source: Path, target: Path, **quantization: Any) -> Path:
    """A copy with other entries in its ``quantization_config``; None removes one."""
    shutil.copytree(source, target)
    config = read_config(target)
    config["quantization_config"] |= quantization
    config["quantization_config"] = {k: v for k, v in config["quantization_config"].items() if v is not None}
    (target / "config.json").write_text(json.dumps(config))
    return target


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize(("bits", "least", "most"), [(3, 0.1, 0.3), (4, 0.05, 0.15), (8, 1e-4, 0.01)])
def test_unpacked_weights_are_the_original_s_as_far_as_bits_allow(
    packed: Callable[..., Path], bits: int, least: float, most: float
) -> None:
    original = CheckpointWeights(CHECKPOINT).under(DOWN)["weight"]
    tensors = CheckpointWeights(packed(bits)).under(DOWN)
    assert list(tensors) == ["weight"]
    assert tensors["weight"].dtype == torch.float32
    assert least < error(tensors["weight"], original) < most


def test_a_permuted_g_idx_is_followed(packed: Callable[..., Path], tmp_path: Path) -> None:
    original = CheckpointWeights(CHECKPOINT).under(DOWN)["weight"]
    permuted = packed(4, act_order=7)
    assert error(CheckpointWeights(permuted).under(DOWN)["weight"], original) < 0.15
    # Read in natural order, the same codes are garbage: the test could fail.
    tensors = read_tensors(permuted)
    tensors = {
        k: torch.arange(len(v), dtype=torch.int32) // 128 if k.endswith(".g_idx") else v
        for k, v in tensors.items()
    }
    sorted_ = copy_with(tmp_path / "sorted", tensors, read_config(permuted), permuted)
    assert error(CheckpointWeights(sorted_).under(DOWN)["weight"], original) > 0.2


def test_modules_of_other_bits_head_and_mtp_are_unpacked_each_in_its_own(packed: Callable[..., Path]) -> None:
    path = packed(
        4,
        also=r"lm_head|mtp\.fc|mtp\.layers\.0\..*_proj",
        dynamic={r"+:.*down_proj|lm_head|mtp\.": {"bits": 8}},
    )
    packed_weights, original = CheckpointWeights(path), CheckpointWeights(CHECKPOINT)
    assert packed_weights.has_mtp
    for prefix, most in ((DOWN, 0.01), ("lm_head.", 0.01), ("mtp.fc.", 0.01)):
        assert error(packed_weights.under(prefix)["weight"], original.under(prefix)["weight"]) < most
    up = DOWN.replace("down", "up")
    assert error(packed_weights.under(up)["weight"], original.under(up)["weight"]) > 0.05
    stack = TextStack(packed_weights, CPU, torch.float32)
    MtpHead(stack)
    hidden = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    logits = [OutputHead(TextStack(w, CPU, torch.float32)).logits(hidden) for w in (packed_weights, original)]
    assert 0 < error(logits[0], logits[1]) < 0.02


def test_unpacking_some_outputs_at_a_time_changes_nothing(
    packed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for bits in (3, 4):
        whole = CheckpointWeights(packed(bits)).under(DOWN)["weight"]
        with monkeypatch.context() as patch:
            patch.setattr(weights_module, "_CHANNELS", 96)
            assert whole.shape[0] % 96, "the last piece is a shorter one"
            assert torch.equal(CheckpointWeights(packed(bits)).under(DOWN)["weight"], whole)


def test_without_act_order_a_missing_g_idx_means_natural_order(
    packed: Callable[..., Path], tmp_path: Path
) -> None:
    tensors = {k: v for k, v in read_tensors(packed()).items() if not k.endswith(".g_idx")}
    bare = copy_with(tmp_path / "bare", tensors, read_config(packed()), packed())
    assert torch.equal(
        CheckpointWeights(bare).under(DOWN)["weight"], CheckpointWeights(packed()).under(DOWN)["weight"]
    )
    ordered = edited(bare, tmp_path / "ordered", desc_act=True)
    with pytest.raises(CheckpointError, match=r"has no .*down_proj\.g_idx"):
        CheckpointWeights(ordered).under(DOWN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "awq"}, "quantized by 'awq'"),
        ({"quant_method": "compressed-tensors"}, "quantized by 'compressed-tensors'"),
        ({"checkpoint_format": "marlin"}, "packed in the format 'marlin'"),
        ({"checkpoint_format": None, "format": "gptq_p"}, "packed in the format 'gptq_p'"),
    ],
)
def test_what_cannot_be_computed_with_is_refused(
    packed: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        CheckpointWeights(edited(packed(), tmp_path / "foreign", **changes))


def test_bits_that_are_not_those_stored_are_refused(packed: Callable[..., Path], tmp_path: Path) -> None:
    wrong = CheckpointWeights(edited(packed(), tmp_path / "wrong", bits=8))
    with pytest.raises(CheckpointError, match="is not packed in 8 bits"):
        wrong.under(DOWN)


def test_a_bias_beside_packed_weights_is_not_lost_silently(
    packed: Callable[..., Path], tmp_path: Path
) -> None:
    tensors = read_tensors(packed())
    tensors[f"{DOWN}bias"] = torch.ones(256)
    path = copy_with(tmp_path / "biased", tensors, read_config(packed()), packed())
    with pytest.raises(CheckpointError, match=r"mlp\.down_proj\.bias"):
        TextStack(CheckpointWeights(path), CPU, torch.float32).layer(0)


def test_a_head_that_is_there_in_part_is_an_error_and_none_is_none(tmp_path: Path) -> None:
    tensors = read_tensors(CHECKPOINT)
    half = copy_with(
        tmp_path / "half", {k: v for k, v in tensors.items() if k != "mtp.fc.weight"}, read_config()
    )
    with pytest.raises(CheckpointError, match=r"lacks 1 of 15 .*mtp\.fc\.weight"):
        _ = CheckpointWeights(half).has_mtp
    with pytest.raises(CheckpointError, match=r"lacks mtp\.fc\.weight"):
        MtpHead(TextStack(CheckpointWeights(half), CPU, torch.float32))
    none = copy_with(tmp_path / "none", {k: v for k, v in tensors.items() if k[:4] != "mtp."}, read_config())
    assert not CheckpointWeights(none).has_mtp


def test_a_head_with_embeddings_of_its_own_is_not_computed_without_them(tmp_path: Path) -> None:
    tensors = read_tensors(CHECKPOINT) | {"mtp.embed_tokens.weight": torch.zeros(8192, 256)}
    path = copy_with(tmp_path / "own", tensors, read_config())
    with pytest.raises(CheckpointError, match=r"also has mtp\.embed_tokens\.weight"):
        MtpHead(TextStack(CheckpointWeights(path), CPU, torch.float32))


def test_an_overlay_replaces_what_it_is_asked_to(packed: Callable[..., Path]) -> None:
    base = CheckpointWeights(packed())
    names: list[str] = []

    def replace(name: str, tensor: torch.Tensor) -> torch.Tensor:
        names.append(name)
        return tensor * 0 if name == f"{DOWN}weight" else tensor

    tensors = Overlay(base, replace).under("model.language_model.layers.0.mlp.")
    assert not tensors["down_proj.weight"].any()
    assert torch.equal(tensors["up_proj.weight"], base.under(DOWN.replace("down", "up"))["weight"])
    assert len(names) == 3
    assert f"{DOWN}weight" in names


def test_a_truncated_shard_is_found_before_anything_is_computed(
    packed: Callable[..., Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(packed(), tmp_path / "cut"))
    shard = path / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        CheckpointWeights(path)
