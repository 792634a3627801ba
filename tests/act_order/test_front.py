"""The check before start for act order, on folders each with one thing wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptq_hybrid.checkpoint import layout_for
from gptq_hybrid.doctor import VllmRelease
from tests.tiny_checkpoints import BODY_FILE, CONFIG, INDEX, write_checkpoint
from vllm_qwen36_plugin.act_order import front
from vllm_qwen36_plugin.act_order.claim import NAME
from vllm_qwen36_plugin.errors import ActOrderError, OptionsError

Shown = Callable[[], str]
GROUP = 16
ATTENTION = "model.layers.3.self_attn"
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture(autouse=True)
def nothing_passed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(front._PASSED, "")


@pytest.fixture(autouse=True)
def release(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The vLLM that is taken to be installed, 0.32.0 unless a test calls this."""

    def install(version: str) -> None:
        monkeypatch.setattr("gptq_hybrid.doctor.installed_vllm", lambda: VllmRelease(version))

    install("0.32.0")
    return install


def quantization(**changes: Any) -> dict[str, Any]:
    return CONFIG | {
        "quantization_config": CONFIG["quantization_config"]
        | {"group_size": GROUP, "desc_act": True}
        | changes
    }


def natural(rows: int) -> torch.Tensor:
    return torch.arange(rows, dtype=torch.int32) // GROUP


def reverse(rows: int) -> torch.Tensor:
    return natural(rows).flip(0).contiguous()


def write(
    folder: Path,
    order: Callable[[int], torch.Tensor] = reverse,
    changes: dict[str, torch.Tensor] | None = None,
    **config: Any,
) -> Path:
    """A checkpoint whose quantized modules have a ``g_idx`` each, and nothing else."""
    changed = quantization(**config)
    write_checkpoint(folder, config=changed)
    body = load_file(folder / BODY_FILE)
    body |= {f"{m.name}.g_idx": order(m.in_features) for m in layout_for(changed).quantized}
    body |= {f"{name}.g_idx": value for name, value in (changes or {}).items()}
    save_file(body, folder / BODY_FILE)
    (folder / INDEX).unlink()  # both files are read without one
    return folder


def vllm_config(
    model: str | Path,
    *,
    ours: bool = True,
    ranks: int = 1,
    method: str | None = "gptq",
    load_format: str = "auto",
    additional: Any = None,
    lora: object = None,
) -> SimpleNamespace:
    config = {"quantization_config": {"quant_method": method}} if method else {}
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(model),
            revision=None,
            quantization=NAME if ours else "auto_gptq",
            hf_config=SimpleNamespace(**config),
        ),
        load_config=SimpleNamespace(load_format=load_format, download_dir=None),
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks),
        lora_config=lora,
        additional_config={} if additional is None else additional,
    )


def refuse(model: Path, **options: Any) -> str:
    with pytest.raises(ActOrderError) as caught:
        front.check_before_start(vllm_config(model, **options))
    return str(caught.value)


def test_act_order_passes_with_one_line_about_its_cost(tmp_path: Path, shown: Shown) -> None:
    front.check_before_start(vllm_config(write(tmp_path)))
    (line,) = shown().splitlines()
    # Of four layers each: the input of attention or Gated-DeltaNet, of its output, of gate_up; down_proj is free.
    assert "permuting the input of 12 layers at run time (4 down_proj cost nothing)" in line
    assert "qwen36 quantize ORIGINAL TARGET --recipe static-mse" in line
    assert "LoRA" not in line


def test_with_lora_the_line_says_that_down_proj_costs_as_well(tmp_path: Path, shown: Shown) -> None:
    front.check_before_start(vllm_config(write(tmp_path), lora=object()))
    assert "with LoRA down_proj is permuted too" in shown()


@pytest.mark.parametrize("flag", [True, False])
def test_rows_in_natural_order_pass_without_a_word(tmp_path: Path, shown: Shown, flag: bool) -> None:
    front.check_before_start(vllm_config(write(tmp_path, natural, desc_act=flag), ranks=2))
    assert shown() == ""


@pytest.mark.parametrize("version", ["0.19.1", "0.29.0", "0.30.0", "0.33.0"])
def test_an_order_that_the_flag_denies_is_refused_whatever_the_vllm(
    tmp_path: Path, release: Callable[[str], None], version: str
) -> None:
    release(version)
    message = refuse(write(tmp_path, desc_act=False), ours=False)
    assert "25 modules have a permuted g_idx although the config has no desc_act: true" in message
    assert f"g_idx in {BODY_FILE}" in message
    assert f"qwen36 repair {tmp_path} sets desc_act to true" in message
    assert '--additional-config \'{"qwen36": {"act_order_check": "off"}}\'' in message


@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
def test_an_order_in_a_format_without_the_flag_is_refused(tmp_path: Path, method: str) -> None:
    message = refuse(write(tmp_path, quant_method=method), ours=False, method=method)
    assert "computes garbage" in message
    assert "qwen36 repair" not in message


@pytest.mark.parametrize("version", ["0.29.0", "0.32.0"])
def test_parts_of_a_fused_layer_that_differ_are_refused(
    tmp_path: Path, release: Callable[[str], None], version: str
) -> None:
    release(version)
    message = refuse(write(tmp_path, changes={f"{ATTENTION}.k_proj": natural(32)}), ours=version > "0.30")
    assert f"{ATTENTION}.q_proj and {ATTENTION}.k_proj differ in g_idx" in message
    assert f"({ATTENTION}.k_proj.g_idx in {BODY_FILE})" in message


def test_groups_of_a_wrong_size_are_refused(tmp_path: Path) -> None:
    uneven = reverse(64)
    uneven[0] = 0
    message = refuse(write(tmp_path, changes={DOWN: uneven}))
    assert f"{DOWN}.g_idx puts 17 rows into group 0, which has 16" in message


def test_rows_split_between_gpus_are_served(tmp_path: Path, shown: Shown) -> None:
    front.check_before_start(vllm_config(write(tmp_path), ranks=2))
    assert "permuting the input of 12 layers" in shown()


def test_rows_split_between_gpus_are_left_to_a_vllm_that_serves_them(
    tmp_path: Path, shown: Shown, release: Callable[[str], None]
) -> None:
    release("0.29.0")
    front.check_before_start(vllm_config(write(tmp_path), ours=False, ranks=2))
    assert "costs a permutation of the input of every layer" in shown()


@pytest.mark.parametrize(
    "options",
    [
        {"method": None},
        {"method": "fp8"},
        {"method": "awq"},
        {"method": "compressed-tensors"},
        {"load_format": "dummy"},
        {"load_format": "tensorizer"},
    ],
)
def test_without_a_g_idx_to_load_nothing_is_read_or_said(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(front, "open_local", pytest.fail)
    front.check_before_start(vllm_config(write(tmp_path, desc_act=False), **options))
    assert shown() == ""


@pytest.mark.parametrize("model", ["someone/never-downloaded", "s3://bucket/model"])
def test_a_model_that_is_not_here_is_left_alone(tmp_path: Path, shown: Shown, model: str) -> None:
    config = vllm_config(model)
    config.load_config.download_dir = str(tmp_path)
    front.check_before_start(config)
    assert shown() == ""


def test_the_check_can_be_switched_off(tmp_path: Path, shown: Shown) -> None:
    off = {"qwen36": {"act_order_check": "off"}}
    front.check_before_start(vllm_config(write(tmp_path, desc_act=False), additional=off))
    assert "is off (act_order_check=off)" in shown()


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="act_order_check"):
        front.check_before_start(vllm_config(tmp_path, additional={"qwen36": {"x": 1}}))


def test_a_check_that_breaks_warns_once_and_lets_vllm_start(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(front, "open_local", broken)
    front.check_before_start(vllm_config(write(tmp_path, desc_act=False)))
    assert shown() == "WARNING the act-order check before start is off: 'oops'"


def test_a_config_that_cannot_be_read_warns_and_lets_vllm_say_so(tmp_path: Path, shown: Shown) -> None:
    (write(tmp_path) / "config.json").write_text("{")
    front.check_before_start(vllm_config(tmp_path))
    assert shown().startswith("WARNING the act-order check before start is off")


def test_what_the_parent_process_has_passed_is_not_read_again(tmp_path: Path, shown: Shown) -> None:
    config = vllm_config(write(tmp_path))
    front.check_before_start(config)
    inherited = os.environ[front._PASSED].partition(":")[2]
    os.environ[front._PASSED] = f"{os.getppid()}:{inherited}"
    front.check_before_start(config)
    assert len(shown().splitlines()) == 1
