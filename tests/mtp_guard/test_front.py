"""The check before start, on folders each with one thing wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tiny_checkpoints import MTP_FILE, Head, random_head, vllm_config, write_checkpoint
from vllm_qwen36_plugin.errors import MtpHeadError, OptionsError
from vllm_qwen36_plugin.mtp_guard import front

Shown = Callable[[], str]
FC, GATE = "mtp.fc.weight", "mtp.layers.0.mlp.gate_proj.weight"


@pytest.fixture(autouse=True)
def nothing_passed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(front._PASSED, "")


def without(name: str) -> Head:
    return {key: value for key, value in random_head().items() if key != name}


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Head:
    head = random_head()
    head[name] = change(head[name]).contiguous()
    return head


def refuse(model: Path) -> str:
    with pytest.raises(MtpHeadError) as caught:
        front.check_before_start(vllm_config(model))
    return str(caught.value)


def test_an_intact_head_passes_and_says_so_once(tmp_path: Path, shown: Shown) -> None:
    front.check_before_start(vllm_config(write_checkpoint(tmp_path)))
    assert shown().count("active: mtp hard check (files in order") == 1


def test_an_unindexed_head_is_refused(tmp_path: Path) -> None:
    message = refuse(write_checkpoint(tmp_path, indexed=False))
    assert (
        "15 of 15 MTP tensors lie in mtp.safetensors, which model.safetensors.index.json does not" in message
    )
    assert f"qwen36 repair {tmp_path}" in message
    assert "leave out --speculative-config" in message
    assert '--additional-config \'{"qwen36": {"mtp_check": "off"}}\'' in message


def test_an_absent_head_is_refused(tmp_path: Path) -> None:
    assert "15 of 15 MTP tensors are in no file" in refuse(write_checkpoint(tmp_path, {}))


@pytest.mark.parametrize("name", [FC, GATE])
def test_a_head_with_one_tensor_missing_is_refused(tmp_path: Path, name: str) -> None:
    message = refuse(write_checkpoint(tmp_path, without(name)))
    assert f"1 of 15 MTP tensors are in no file of the checkpoint: {name}" in message


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    message = refuse(write_checkpoint(tmp_path, changed(GATE, lambda t: torch.cat([t, t]))))
    assert f"{GATE} in {MTP_FILE} is [128, 32]; config.json calls for [64, 32]" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_head_in_one_byte_without_scales_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    assert "is stored as" in refuse(write_checkpoint(tmp_path, changed(FC, lambda t: t.to(dtype))))


def test_an_index_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / MTP_FILE).unlink()
    assert f"names {MTP_FILE}, which does not exist" in refuse(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path) / MTP_FILE
    os.truncate(file, file.stat().st_size // 2)
    message = refuse(tmp_path)
    assert str(file) in message
    assert "is truncated" in message


@pytest.mark.parametrize(("value", "what"), [(0.0, "holds only zeros"), (float("nan"), "holds NaN")])
def test_a_head_of_zeros_or_nan_is_refused(tmp_path: Path, value: float, what: str) -> None:
    assert what in refuse(write_checkpoint(tmp_path, changed(FC, lambda t: torch.full_like(t, value))))


def test_a_malformed_index_is_refused(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "model.safetensors.index.json").write_text("{")
    assert "is not valid JSON" in refuse(tmp_path)


def over_stages(model: Path, *, v2: bool) -> Any:
    config = vllm_config(model)
    config.parallel_config = SimpleNamespace(pipeline_parallel_size=2)
    config.use_v2_model_runner = v2
    return config


def test_drafts_over_stages_are_refused_where_vllm_dies_with_them_after_loading(tmp_path: Path) -> None:
    with pytest.raises(MtpHeadError) as caught:
        front.check_before_start(over_stages(write_checkpoint(tmp_path), v2=False))
    message = str(caught.value)
    assert "over 2 stages (--pipeline-parallel-size), and this vLLM cannot do both" in message
    assert "--tensor-parallel-size in place of --pipeline-parallel-size" in message
    assert '"mtp_check": "off"' in message


def test_drafts_over_stages_are_left_to_a_model_runner_that_does_them(tmp_path: Path) -> None:
    front.check_before_start(over_stages(write_checkpoint(tmp_path), v2=True))


def test_with_the_check_off_stages_are_not_refused_either(tmp_path: Path) -> None:
    config = over_stages(write_checkpoint(tmp_path), v2=False)
    config.additional_config = {"qwen36": {"mtp_check": "off"}}
    front.check_before_start(config)


def test_the_message_stays_short_however_much_is_wrong(tmp_path: Path) -> None:
    message = refuse(write_checkpoint(tmp_path, {k: torch.zeros(1, 1) for k in random_head()}))
    assert len(message.splitlines()) <= 20
    assert "and 10 more" in message


def test_what_the_parent_process_has_passed_is_not_checked_again(tmp_path: Path, shown: Shown) -> None:
    config = vllm_config(write_checkpoint(tmp_path))
    front.check_before_start(config)
    front.check_before_start(config)
    assert shown().count("files in order") == 2  # nothing is remembered in the process itself
    inherited = os.environ[front._PASSED].partition(":")[2]
    os.environ[front._PASSED] = f"{os.getppid()}:{inherited}"
    front.check_before_start(config)
    assert shown().count("files in order") == 2


def test_the_draft_model_is_checked_not_the_target(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "target", indexed=False)
    config = vllm_config(write_checkpoint(tmp_path / "draft"))
    config.model_config = vllm_config(tmp_path / "target").speculative_config.draft_model_config
    front.check_before_start(config)


@pytest.mark.parametrize(
    "variant",
    [
        {"method": None},
        {"method": "ngram"},
        {"method": "eagle3"},
        {"architectures": ("DeepSeekMTPModel",)},
        {"architectures": ("Qwen3_5MoeMTP",)},
    ],
)
def test_without_our_mtp_nothing_is_read_or_said(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch, variant: dict[str, Any]
) -> None:
    monkeypatch.setattr(front, "open_local", pytest.fail)
    front.check_before_start(vllm_config(write_checkpoint(tmp_path, indexed=False), **variant))
    assert shown() == ""


@pytest.mark.parametrize("load_format", ["dummy", "runai_streamer", "tensorizer", "sharded_state", "pt"])
def test_loaders_that_do_not_follow_the_index_are_left_to_the_worker(
    tmp_path: Path, shown: Shown, load_format: str
) -> None:
    config = vllm_config(write_checkpoint(tmp_path, indexed=False), load_format=load_format)
    front.check_before_start(config)
    assert "in the worker" in shown()


def test_the_load_format_of_the_draft_itself_counts(tmp_path: Path) -> None:
    config = vllm_config(write_checkpoint(tmp_path, indexed=False))
    config.speculative_config.draft_load_config = vllm_config(tmp_path, load_format="dummy").load_config
    front.check_before_start(config)


def test_the_check_can_be_switched_off(tmp_path: Path, shown: Shown) -> None:
    off = {"qwen36": {"mtp_check": "off"}}
    front.check_before_start(vllm_config(write_checkpoint(tmp_path, indexed=False), additional=off))
    assert "is off (mtp_check=off)" in shown()


def test_an_unknown_option_is_refused_even_without_mtp(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="mtp_check"):
        front.check_before_start(vllm_config(tmp_path, method=None, additional={"qwen36": {"x": 1}}))


def test_a_check_that_breaks_warns_and_lets_vllm_start(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(front, "open_local", broken)
    front.check_before_start(vllm_config(write_checkpoint(tmp_path, indexed=False)))
    assert "the worker will check: 'oops'" in shown()


def test_a_config_of_another_shape_warns_and_lets_vllm_start(tmp_path: Path, shown: Shown) -> None:
    config = vllm_config(tmp_path)
    del config.speculative_config.draft_model_config.hf_config
    front.check_before_start(config)
    assert "vLLM's config has changed" in shown()


def test_a_hub_model_is_checked_once_its_snapshot_is_complete(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path)
    write_checkpoint(snapshot, indexed=False)
    config = vllm_config("someone/some-model")
    config.load_config.download_dir = str(tmp_path)
    with pytest.raises(MtpHeadError, match=r"lie in mtp\.safetensors"):
        front.check_before_start(config)
    (snapshot / "model.safetensors").unlink()
    front.check_before_start(config)


@pytest.mark.parametrize("model", ["someone/never-downloaded", "s3://bucket/model", "a/b/c/not a repo"])
def test_a_model_that_is_not_here_is_left_to_the_worker(tmp_path: Path, shown: Shown, model: str) -> None:
    config = vllm_config(model)
    config.load_config.download_dir = str(tmp_path)
    front.check_before_start(config)
    assert "is not on this machine yet" in shown()


def hub_snapshot(cache: Path) -> Path:
    repo = cache / "models--someone--some-model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    return repo / "snapshots" / "abc"
