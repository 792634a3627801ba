"""A head packed in GPTQ's layout: both checks accept a whole one, in the bits the config gives it, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_hybrid.packing import pack, quantize_rtn
from tests.tiny_checkpoints import CONFIG, Head, random_head, vllm_config, write_checkpoint
from vllm_qwen36_plugin.errors import MtpHeadError
from vllm_qwen36_plugin.mtp_guard import front, head
from vllm_qwen36_plugin.mtp_guard.head import Arrival

FC, GATE, UP, DOWN = "mtp.fc", *(f"mtp.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down"))
GROUP = 32
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
EXPECTED = head.expected_tensors(CONFIG)


@pytest.fixture(autouse=True)
def nothing_passed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(front._PASSED, "")


def config(**rules: Any) -> dict[str, Any]:
    quantization = {**CONFIG["quantization_config"], **({"dynamic": rules} if rules else {})}
    return {**CONFIG, "quantization_config": quantization}


def packed_head(bits: int = 4) -> Head:
    out: Head = {}
    for name, tensor in random_head().items():
        if tensor.dim() < 2:
            out[name] = tensor
            continue
        codes, scales = quantize_rtn(tensor, bits, GROUP)
        module = name.removesuffix(".weight")
        out |= {f"{module}.{part}": value for part, value in pack(codes, scales, bits).items()}
    return out


def without(*names: str) -> Head:
    return {name: tensor for name, tensor in packed_head().items() if name not in names}


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Head:
    out = packed_head()
    out[name] = change(out[name]).contiguous()
    return out


def refusal(folder: Path, content: Head, **rules: Any) -> str:
    with pytest.raises(MtpHeadError) as caught:
        front.check_before_start(vllm_config(write_checkpoint(folder, content, config=config(**rules))))
    return str(caught.value)


def test_a_packed_head_passes_before_the_start(tmp_path: Path, shown: Callable[[], str]) -> None:
    front.check_before_start(vllm_config(write_checkpoint(tmp_path, packed_head(), config=config())))
    assert "files in order" in shown()


def test_eight_bits_pass_where_the_config_says_so(tmp_path: Path) -> None:
    rules = {r"+:^mtp\.": {"bits": 8}}
    folder = write_checkpoint(tmp_path / "with-rule", packed_head(8), config=config(**rules))
    front.check_before_start(vllm_config(folder))
    assert "the config calls for I32" in refusal(tmp_path / "unsaid", packed_head(8))
    assert "the config calls for I32" in refusal(tmp_path / "four", packed_head(4), **rules)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without(f"{FC}.qweight"), f"in no file of the checkpoint: {FC}.weight"),
        (without(f"{UP}.scales"), f"in no file of the checkpoint: {UP}.weight"),
        (changed(f"{FC}.qweight", lambda t: t[:-2]), f"{FC}.qweight in mtp.safetensors is I32 [6, 32]"),
        (changed(f"{UP}.scales", lambda t: t.repeat_interleave(2, dim=0)), f"{UP}.scales"),
        (changed(f"{UP}.scales", lambda t: t * torch.nan), f"{UP}.scales in mtp.safetensors holds NaN"),
        (changed(f"{UP}.scales", torch.zeros_like), f"{UP}.scales in mtp.safetensors holds only zeros"),
        (changed(f"{DOWN}.qweight", torch.zeros_like), f"{DOWN}.qweight in mtp.safetensors holds one value"),
        (
            changed(f"{DOWN}.qweight", lambda t: torch.full_like(t, -0x77777778)),
            f"{DOWN}.qweight in mtp.safetensors holds one value",
        ),
        (
            {**without(*(f"{GATE}.{p}" for p in ("qweight", "scales", "qzeros", "g_idx"))),
             f"{GATE}.weight": random_head()[f"{GATE}.weight"]},
            "vLLM loads mtp.layers.0.mlp.gate_up_proj as one",
        ),
    ],
    ids=[
        "no-qweight", "no-scales", "short", "more-groups", "nan", "zero-scales", "zeros",
        "zero-weights", "half-fused",
    ],
)  # fmt: skip
def test_a_damaged_packed_head_is_refused_before_the_start(
    tmp_path: Path, content: Head, message: str
) -> None:
    assert message in refusal(tmp_path, content)


@pytest.mark.parametrize("rule", [r"-:^mtp\.", r"-:.*mtp.*", r"-:mtp\.fc$"])
def test_a_rule_that_has_vllm_build_the_head_unquantized_is_refused(tmp_path: Path, rule: str) -> None:
    assert "quantiz" in refusal(tmp_path, packed_head(), **{rule: {}})


def arrivals(content: Head) -> dict[str, Arrival]:
    return {name: Arrival(tuple(tensor.shape), tensor.dtype) for name, tensor in content.items()}


def shapes(**rules: Any) -> dict[str, tuple[int, ...]]:
    return head.packed_tensors(EXPECTED, config(**rules)["quantization_config"], FUSED)


def test_the_worker_finds_a_packed_head_whole() -> None:
    came = arrivals(packed_head())
    assert head.missing(EXPECTED, came, FUSED) == []
    assert head.misshapen(EXPECTED, came, shapes()) == []


@pytest.mark.parametrize("part", ["qweight", "scales"])
def test_the_worker_misses_a_part_of_one_shard_by_name(part: str) -> None:
    absent = head.missing(EXPECTED, arrivals(without(f"{UP}.{part}")), FUSED)
    assert absent == [f"{UP}.weight" if part == "qweight" else f"{UP}.scales"]


def test_the_worker_names_a_packed_tensor_of_other_bits() -> None:
    came = arrivals(packed_head(8))
    assert f"{FC}.qweight is [16, 32]; the model calls for [8, 32]" in head.misshapen(
        EXPECTED, came, shapes()
    )
    assert head.misshapen(EXPECTED, came, shapes(**{r"+:^mtp\.": {"bits": 8}})) == []


def test_bits_are_those_of_the_fused_module_for_vllm_asks_for_no_other() -> None:
    by_shard, by_whole = (
        shapes(**{rf"+:^mtp\..*\.{name}$": {"bits": 8}}) for name in ("up_proj", "gate_up_proj")
    )
    assert by_shard[f"{UP}.qweight"] == (4, 64)
    assert by_whole[f"{UP}.qweight"] == (8, 64)


@pytest.mark.parametrize("other", [None, {"quant_method": "fp8"}, {"quant_method": "awq", "bits": 4}])
def test_other_formats_call_for_no_packed_shapes(other: dict[str, Any] | None) -> None:
    assert head.packed_tensors(EXPECTED, other, FUSED) == {}


def test_one_shard_of_packed_zeros_is_noticed_in_the_fused_parameter() -> None:
    generator = torch.Generator().manual_seed(0)
    good = torch.randint(-(1 << 31), 1 << 31, (8, 24), generator=generator).to(torch.int32)
    half = torch.cat([torch.full((8, 24), -0x77777778, dtype=torch.int32), good], dim=1)
    named = {"m.qweight": half, "n.qweight": torch.cat([good, good], dim=1)}
    assert head.bad_values(named, {"m": [24, 24], "n": [24, 24]}) == [
        "m.qweight (shard 0) holds one value over and over"
    ]


def test_a_nan_scale_is_noticed() -> None:
    scales = torch.ones(4, 24)
    scales[3, 20] = torch.nan
    assert head.bad_values({"m.scales": scales}, {"m": [12, 12]}) == [
        "m.scales (shard 1) holds NaN or infinite values"
    ]
