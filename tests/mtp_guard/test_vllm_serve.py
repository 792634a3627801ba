"""Real `vllm serve` processes, on demo checkpoints: what a user sees, and when."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "mtp_faults"))

from faults import FAULTS, faulty_copy
from safetensors.torch import load_file, save_file
from server import Outcome, serve_once

from gptq_hybrid.checkpoint import layout_for
from gptq_hybrid.demo import DemoCheckpoint, DemoSpec, build_demo_checkpoint
from tests.corpus.bases import write_index

pytestmark = pytest.mark.engine

TOKENS = 16
BLIND_FRONT = "blind_front_for_a_test"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoCheckpoint:
    return build_demo_checkpoint(tmp_path_factory.mktemp("demo") / "intact", DemoSpec(mtp="separate"))


@pytest.fixture
def serve(demo: DemoCheckpoint, tmp_path: Path) -> Callable[..., tuple[Outcome, str]]:
    """Break the head as named, serve, complete; returns what happened and everything on the terminal."""

    def serve_with(fault: str, *, plugins: str = "qwen36", **options: object) -> tuple[Outcome, str]:
        model = tmp_path / fault
        faulty_copy(demo.path, model, next(f for f in FAULTS if f.name == fault))
        log = tmp_path / "log"
        outcome = serve_once(model, demo.loop[:5], TOKENS, plugins=plugins, log=log, **options)  # type: ignore[arg-type]
        return outcome, log.read_text()

    return serve_with


def test_an_intact_head_is_verified_and_has_every_draft_accepted(
    serve: Callable[..., tuple[Outcome, str]], demo: DemoCheckpoint
) -> None:
    outcome, terminal = serve("intact")
    assert outcome.started
    assert outcome.text == demo.expected_text(demo.loop[:5], TOKENS)
    assert outcome.accepted
    assert outcome.accepted == outcome.proposed
    assert terminal.count("active: mtp hard check (files in order") == 1
    assert terminal.count("MTP head verified: 15 tensors loaded") == 1


def as_llm_compressor_writes(source: Path, folder: Path) -> Path:
    """The demo in compressed-tensors, exclusions by the names of vLLM's own modules, no count of MTP layers.

    Stock vLLM loads both with a live head; the plugin once ended the server.
    """
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    linears = {linear.weight.name: linear.name for linear in layout_for(config).quantized}
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
            continue
        tensors = load_file(path)
        for name in linears.keys() & tensors.keys():
            weight = tensors.pop(name).float()
            groups = weight.view(len(weight), -1, 128)
            scales = (groups.abs().amax(-1) / 7).clamp_min(1e-6)
            codes = (groups / scales[..., None]).round().clamp(-8, 7).view(weight.shape).int() + 8
            words = (codes.view(len(weight), -1, 8).long() << (4 * torch.arange(8))).sum(-1)
            words = torch.where(words >= 1 << 31, words - (1 << 32), words)
            tensors[f"{linears[name]}.weight_packed"] = words.int()
            tensors[f"{linears[name]}.weight_scale"] = scales.bfloat16()
            tensors[f"{linears[name]}.weight_shape"] = torch.tensor(weight.shape)
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
    layer = "mtp.layers.0"
    fused = [f"{layer}.self_attn.{name}" for name in ("qkv_proj", "o_proj")]
    fused += [f"{layer}.mlp.{name}" for name in ("gate_up_proj", "down_proj")]
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 128, "strategy": "group"}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", "mtp.fc", *fused, "re:.*in_proj_ba", "re:.*visual.*"],
        "quantization_status": "compressed",
    }
    del config["text_config"]["mtp_num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    write_index(folder)
    return folder


def test_fused_names_and_an_absent_count_serve_with_every_draft_accepted(
    demo: DemoCheckpoint, tmp_path: Path
) -> None:
    folder, log = as_llm_compressor_writes(demo.path, tmp_path / "made"), tmp_path / "log"
    outcome = serve_once(folder, demo.loop[:5], TOKENS, plugins="qwen36", log=log)
    assert outcome.started, outcome.message
    assert outcome.text == demo.expected_text(demo.loop[:5], TOKENS)
    assert outcome.accepted
    assert outcome.accepted == outcome.proposed
    assert log.read_text().count("MTP head verified: 15 tensors loaded") == 1


def test_an_unindexed_head_ends_the_command_with_the_message_alone(
    serve: Callable[..., tuple[Outcome, str]],
) -> None:
    outcome, terminal = serve("unindexed")
    assert not outcome.started
    assert outcome.exit_code == 1
    assert "15 of 15 MTP tensors lie in mtp.safetensors" in terminal
    assert "qwen36 repair" in terminal
    assert "Traceback" not in terminal
    assert "EngineCore" not in terminal


def test_without_speculation_a_lost_head_is_nobodys_business(
    serve: Callable[..., tuple[Outcome, str]], demo: DemoCheckpoint
) -> None:
    outcome, terminal = serve("unindexed", speculative=False)
    assert outcome.started
    assert outcome.text == demo.expected_text(demo.loop[:5], TOKENS)
    # vLLM itself lists the entry points that it loads.
    said = [
        line for line in terminal.splitlines() if "qwen36" in line and "lugin" not in line.split("qwen36")[0]
    ]
    assert [line for line in said if "-> vllm_qwen36_plugin." not in line] == []


def test_what_the_front_process_cannot_see_is_refused_in_the_worker(
    serve: Callable[..., tuple[Outcome, str]], tmp_path: Path
) -> None:
    shim = tmp_path / "shim"
    info = shim / f"{BLIND_FRONT}-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {BLIND_FRONT}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{BLIND_FRONT} = {BLIND_FRONT}:register\n"
    )
    (shim / f"{BLIND_FRONT}.py").write_text(
        "def register():\n"
        "    from vllm_qwen36_plugin.mtp_guard import front\n"
        "    front.INDEXED_FORMATS = frozenset()\n"
    )
    outcome, terminal = serve("no-gate", plugins=f"qwen36,{BLIND_FRONT}", pythonpath=shim)
    assert not outcome.started
    assert outcome.exit_code == 1
    errors = [line for line in terminal.splitlines() if "no tensor for 1 of 15" in line and "ERROR" in line]
    assert any("[worker.py" in line and "gate_proj.weight" in line for line in errors)


def test_a_mistyped_option_ends_the_command_with_the_valid_ones(
    serve: Callable[..., tuple[Outcome, str]],
) -> None:
    outcome, terminal = serve("intact", extra=["--additional-config", '{"qwen36": {"mtp_chek": "off"}}'])
    assert outcome.exit_code == 1
    assert 'unknown option "qwen36.mtp_chek" in --additional-config; there are: mtp_check' in terminal
    assert "Traceback" not in terminal
