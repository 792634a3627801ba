"""The draft class itself, built and loaded by vLLM on the CPU from a demo checkpoint without its target."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("vllm")

from gptq_hybrid.demo import DemoSpec, build_demo_checkpoint
from vllm_qwen36_plugin.errors import MtpHeadError

# No engine, but vLLM's imports and its inspection of the model class: half a minute on two cores.
pytestmark = pytest.mark.engine

Shown = Callable[[], str]
Head = dict[str, torch.Tensor]
FC, GATE, DOWN = "mtp.fc.weight", "mtp.layers.0.mlp.gate_proj.weight", "mtp.layers.0.mlp.down_proj"
MTP_FILE, INDEX = "mtp.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPTQ checkpoint by its config, which the draft inherits; the head in BF16 but for one int4 matrix."""
    folder = build_demo_checkpoint(tmp_path_factory.mktemp("demo"), DemoSpec(mtp="separate")).path
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False, "lm_head": False
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    head = load_file(folder / MTP_FILE)
    rows, columns = head.pop(f"{DOWN}.weight").shape
    head[f"{DOWN}.qweight"] = torch.randint(1, 1 << 30, (columns // 8, rows), dtype=torch.int32)
    head[f"{DOWN}.qzeros"] = torch.full((columns // 128, rows // 8), 0x77777777, dtype=torch.int32)
    head[f"{DOWN}.scales"] = torch.rand(columns // 128, rows).bfloat16()
    head[f"{DOWN}.g_idx"] = torch.arange(columns, dtype=torch.int32) // 128
    save_file(head, folder / MTP_FILE)
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    index = {n: f for n, f in index.items() if f != MTP_FILE} | dict.fromkeys(head, MTP_FILE)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.fixture(scope="module")
def vllm_config(source: Path) -> Iterator[Any]:
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.engine.arg_utils import EngineArgs

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        config = EngineArgs(
            model=str(source),
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=256,
            limit_mm_per_prompt={"image": 0, "video": 0},
            speculative_config={"method": "mtp", "num_speculative_tokens": 2},
        ).create_engine_config()
        with set_current_vllm_config(config):
            init_distributed_environment(1, 0, f"file://{source}/rendezvous", 0, "gloo")
            initialize_model_parallel(1)
            yield config
            cleanup_dist_env_and_memory()


@pytest.fixture
def load(vllm_config: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Load the draft from a folder the front process never saw, the way a worker does."""
    from vllm import _custom_ops
    from vllm.model_executor.model_loader import get_model

    # With oneDNN the CPU build packs a weight after loading and leaves an empty parameter, which takes no update.
    # Whether it finds oneDNN depends on what was imported first.
    monkeypatch.setattr(_custom_ops, "_supports_onednn", False)

    def load_from(folder: Path, **options: Any) -> Any:
        vllm_config.compilation_config.static_forward_context.clear()  # one draft after another
        with swapped(vllm_config.speculative_config.draft_model_config, "model", str(folder)) as draft:
            return get_model(vllm_config=vllm_config, model_config=draft, prefix="draft_model", **options)

    return load_from


@contextmanager
def swapped(target: Any, name: str, value: Any) -> Iterator[Any]:
    before = getattr(target, name)
    setattr(target, name, value)
    yield target
    setattr(target, name, before)


def without(head: Head, name: str) -> Head:
    return {key: value for key, value in head.items() if key != name}


def with_head(source: Path, folder: Path, change: Callable[[Head], Head], *, indexed: bool = True) -> Path:
    for path in source.iterdir():
        if path.is_file() and path.name not in {MTP_FILE, INDEX}:
            (folder / path.name).symlink_to(path)
    head = {name: tensor.contiguous() for name, tensor in change(load_file(source / MTP_FILE)).items()}
    save_file(head, folder / MTP_FILE, metadata={"format": "pt"})
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    weight_map = {n: f for n, f in weight_map.items() if f != MTP_FILE}
    weight_map |= dict.fromkeys(head, MTP_FILE) if indexed else {}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_the_class_is_ours_and_still_vllms(load: Callable[..., Any], source: Path, shown: Shown) -> None:
    from vllm.model_executor.models.qwen3_5_mtp import Qwen3_5MTP

    model = load(source)
    assert isinstance(model, Qwen3_5MTP)
    assert type(model) is not Qwen3_5MTP
    assert type(model).__name__ == "Qwen3_5MTP"
    assert shown() == "INFO MTP head verified: 15 tensors loaded"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: without(h, FC), f"no tensor for 1 of 15: {FC}"),
        (lambda h: without(h, GATE), f"no tensor for 1 of 15: {GATE}"),
        (lambda h: without(h, f"{DOWN}.qweight"), f"no tensor for 1 of 15: {DOWN}.weight"),
        (
            lambda h: without(h, f"{DOWN}.scales"),
            f"no tensor for 1 of 15: {DOWN}.scales",
        ),
        (
            lambda h: h | {f"{DOWN}.qweight": h[f"{DOWN}.qweight"][:-16]},
            f"{DOWN}.qweight is [48, 256]; the model calls for [64, 256]",
        ),
        (
            lambda h: h | {f"{DOWN}.qweight": torch.zeros_like(h[f"{DOWN}.qweight"])},
            "down_proj.qweight holds one value over and over",
        ),
        (
            lambda h: h | {FC: torch.cat([h[FC], h[FC]])},
            f"{FC} is [512, 512]; the model calls for [256, 512]",
        ),
        (lambda h: h | {GATE: torch.cat([h[GATE]] * 2)}, f"{GATE} is [1024, 256]; the model calls"),
        (
            lambda h: h | {FC: h[FC].to(torch.float8_e4m3fn)},
            f"{FC} came as torch.float8_e4m3fn, without scales",
        ),
        (lambda h: h | {GATE: torch.zeros_like(h[GATE])}, "gate_up_proj.weight (shard 0) holds only zeros"),
        (lambda h: h | {FC: torch.full_like(h[FC], float("nan"))}, "model.fc.weight holds NaN"),
    ],
    ids=[
        "no-fc",
        "no-gate",
        "no-qweight",
        "no-scales",
        "shape-packed",
        "zero-packed",
        "shape-fc",
        "shape-gate",
        "dtype",
        "zero-shard",
        "nan",
    ],
)
def test_a_damaged_head_is_an_error_that_is_logged_once(
    load: Callable[..., Any], source: Path, tmp_path: Path, shown: Shown, change: Any, message: str
) -> None:
    with pytest.raises(MtpHeadError) as caught:
        load(with_head(source, tmp_path, change))
    assert message in str(caught.value)
    assert shown() == f"ERROR {caught.value}"


def test_an_unindexed_head_is_an_error(load: Callable[..., Any], source: Path, tmp_path: Path) -> None:
    with pytest.raises(MtpHeadError, match="no tensor for 15 of 15"):
        load(with_head(source, tmp_path, lambda head: head, indexed=False))


def test_the_check_can_be_switched_off(
    load: Callable[..., Any], vllm_config: Any, source: Path, tmp_path: Path, shown: Shown
) -> None:
    folder = with_head(source, tmp_path, lambda head: head, indexed=False)
    with swapped(vllm_config, "additional_config", {"qwen36": {"mtp_check": "off"}}):
        load(folder)
    assert shown() == ""


def test_vllms_loader_tracks_the_drafts_weights_and_not_the_targets(
    load: Callable[..., Any], vllm_config: Any, source: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.model_loader.utils import get_draft_load_config

    from vllm_qwen36_plugin.mtp_guard import worker

    own = get_draft_load_config(vllm_config)
    assert own.model_loader_extra_config == {"enable_weights_track": True}
    assert vllm_config.load_config.model_loader_extra_config == {}
    load(source, load_config=own)
    assert shown() == "INFO MTP head verified: 15 tensors loaded"
    # What the tensors of the checkpoint do not show is left to it.
    stock = worker.Qwen3_5MTP.__mro__[1].load_weights
    monkeypatch.setattr(
        worker.Qwen3_5MTP.__mro__[1], "load_weights", lambda self, w: stock(self, w) - {"model.fc.weight"}
    )
    with pytest.raises(ValueError, match=r"not initialized from.*model\.fc\.weight"):
        load(source, load_config=own)


def test_later_partial_updates_are_not_checked(load: Callable[..., Any], source: Path, shown: Shown) -> None:
    model = load(source)
    fc = load_file(source / MTP_FILE)[FC]
    assert model.load_weights([(FC, fc)]) == {"model.fc.weight"}
    assert shown().count("\n") == 0


def test_updates_of_dummy_weights_are_not_checked(
    load: Callable[..., Any], vllm_config: Any, source: Path, shown: Shown
) -> None:
    with (
        swapped(vllm_config.load_config, "load_format", "dummy"),
        swapped(vllm_config.speculative_config, "draft_load_config", None),
    ):
        model = load(source)
        model.load_weights([(FC, load_file(source / MTP_FILE)[FC])])
    assert shown() == ""


def test_tensors_pass_through_as_the_same_objects() -> None:
    from vllm_qwen36_plugin.mtp_guard.worker import _recorded

    tensor = torch.ones(2, 3)
    arrived: dict[str, Any] = {}
    ((name, passed),) = _recorded([("mtp.fc.weight", tensor)], arrived)
    assert passed is tensor
    assert arrived[name].shape == (2, 3)
