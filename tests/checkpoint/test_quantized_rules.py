"""A GPTQ checkpoint that would load and compute garbage is found from headers and g_idx alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import Checkpoint, check_quantized

LAYER = "model.language_model.layers"


def rules(path: Path) -> set[str]:
    return {finding.rule for finding in check_quantized(Checkpoint.open(path))}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    from safetensors.torch import load_file, save_file

    shard = path / "model.safetensors"
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})
    return path


def set_config(path: Path, **values: Any) -> Path:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"].update(values)
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_what_the_writer_writes_passes(quantized: Callable[..., Any]) -> None:
    assert rules(quantized("static").path) == set()
    assert rules(quantized("reference").path) == set()


def test_a_permuted_g_idx_under_a_false_flag(
    quantized: Callable[..., Any], damaged: Callable[[Path], Path]
) -> None:
    assert rules(set_config(damaged(quantized("reference").path), desc_act=False)) == {"g-idx-flag"}


def test_fused_shards_that_disagree(quantized: Callable[..., Any], damaged: Callable[[Path], Path]) -> None:
    name = f"{LAYER}.0.linear_attn.in_proj_z.g_idx"
    path = edit(
        damaged(quantized("reference").path), lambda t: t.update({name: t[name].flip(0).contiguous()})
    )
    assert rules(path) == {"g-idx-fused"}


def test_a_missing_part(quantized: Callable[..., Any], damaged: Callable[[Path], Path]) -> None:
    path = edit(damaged(quantized("static").path), lambda t: t.pop(f"{LAYER}.3.self_attn.o_proj.scales"))
    assert rules(path) == {"quantized-missing"}


def test_groups_of_another_size_than_declared(
    quantized: Callable[..., Any], damaged: Callable[[Path], Path]
) -> None:
    assert "quantized-shape" in rules(set_config(damaged(quantized("static").path), group_size=64))


def test_a_module_that_must_stay_bf16(quantized: Callable[..., Any], damaged: Callable[[Path], Path]) -> None:
    def change(tensors: dict[str, Any]) -> None:
        base = f"{LAYER}.0.linear_attn.in_proj_b"
        tensors[f"{base}.qweight"] = tensors.pop(f"{base}.weight")

    assert rules(edit(damaged(quantized("static").path), change)) == {"quantized-extra"}


def test_a_module_left_out_by_a_rule_may_be_dense(
    quantized: Callable[..., Any], damaged: Callable[[Path], Path]
) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for part in ("qweight", "scales", "qzeros", "g_idx"):
            tensors.pop(f"{LAYER}.3.self_attn.o_proj.{part}")

    path = edit(damaged(quantized("static").path), change)
    dynamic = {r"-:^mtp\.": {}, r"-:.*\.o_proj": {}}
    assert rules(set_config(path, dynamic=dynamic)) == set()
