"""``qwen36 tune prefill``: what it refuses, and a run from end to end with the measuring made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gptq_hybrid.common.errors import HybridError
from tests.command_line import Run, in_process
from tests.tune.prefill.made import CARD, made_up
from vllm_qwen36_plugin.prefill.profile import Profile, Starts, cache_path, read, write
from vllm_qwen36_plugin.prefill.shape import Shape
from vllm_qwen36_plugin.tune.prefill import command, machine
from vllm_qwen36_plugin.tune.prefill.result import Tuned

MINI = Path(__file__).parents[3] / "bench" / "mini" / "checkpoint"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and an empty cache that does not exist yet beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("QWEN36_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def qwen36(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], here: Path) -> Run:
    """Exit code, stdout and stderr of the command, run in this process."""
    return in_process(monkeypatch, capfd)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A machine that measures made-up times, and a list of what it was to measure."""
    measured: list[dict[str, Any]] = []

    def measure(linears: Any, counts: Any, dtype: str, scratch_mib: int, fp8: bool, a8: bool) -> Tuned:
        measured.append(
            {"linears": linears, "dtype": dtype, "scratch_mib": scratch_mib, "fp8": fp8, "a8": a8}
        )
        return made_up(tuple(counts), fp8=fp8, a8=a8)

    monkeypatch.setattr(command, "refuse_machine", lambda: None)
    monkeypatch.setattr(command, "check_machine", lambda fp8: fp8 is not False)
    monkeypatch.setattr(command, "busy_notes", list)
    monkeypatch.setattr(command, "_measure", measure)
    return measured


def refused(ended: tuple[int, str, str], tmp: Path, *words: str) -> None:
    """Exit code 2, one error with ``words`` in it, and no file anywhere below ``tmp``."""
    code, out, err = ended
    assert code == 2, ended
    assert err.count("Error") == 1, err
    assert out == ""
    assert "Traceback" not in err
    for word in words:
        assert word in " ".join(err.split()), err
    assert [path for path in tmp.rglob("*") if path.is_file()] == []


def test_without_a_gpu(here: Path, tmp_path: Path) -> None:
    """In a process of its own, where nothing but the error may be printed."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "QWEN36_CACHE": str(tmp_path / "cache")}
    command = [
        str(Path(sys.executable).with_name("qwen36")),
        "tune",
        "prefill",
        "--out",
        "p.json",
        "--plot",
        "p.png",
    ]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    refused((ended.returncode, ended.stdout, ended.stderr), tmp_path, "no CUDA GPU", "nvidia-smi")


def test_without_vllm(qwen36: Run, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    refused(qwen36("tune", "prefill"), tmp_path, "vLLM is not installed", "vllm-qwen36-plugin[serve]")


@pytest.mark.parametrize(
    ("capability", "arguments", "words"),
    [
        ((7, 5), (), "older than Ampere"),
        ((8, 6), ("--fp8",), "does not multiply FP8"),
    ],
)
def test_a_gpu_that_cannot(
    qwen36: Run,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    refused(qwen36("tune", "prefill", *arguments), tmp_path, "A card", words)


def test_eight_bit_activations_are_measured_where_the_gpu_can(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    answers = []
    for capability in ((8, 0), (8, 9), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, now=capability: now)
        answers.append((machine.check_machine(None), machine.check_machine(False)))
    assert answers == [(False, False), (True, False), (True, False)]


@pytest.mark.parametrize(("used_gib", "notes"), [(0.5, 0), (20, 1)])
def test_a_gpu_in_use_is_warned_of(used_gib: float, notes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    total = 48 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (total - int(used_gib * 2**30), total))
    warnings = machine.busy_notes()
    assert len(warnings) == notes
    assert all("20.0 GiB of the GPU were in use" in note for note in warnings)


def test_the_cpu_build_of_vllm(
    qwen36: Run,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Cpu:
        device_name = "cpu"

        @staticmethod
        def is_cuda() -> bool:
            return False

    platforms = ModuleType("vllm.platforms")
    vars(platforms)["current_platform"] = Cpu()
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setattr(command, "refuse_machine", lambda: None)
    monkeypatch.setattr(command, "check_machine", lambda _: False)
    monkeypatch.setattr(command, "busy_notes", list)
    code, _, err = qwen36("tune", "prefill")
    assert code == 2
    assert "this vLLM is built for cpu" in " ".join(err.split())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rows", "128,many"), "--rows '128,many' is no list"),
        (("--rows", "0,128"), "from 1 to 65,536"),
        (("--rows", ""), "is no list"),
        (("--dtype", "float32"), "--dtype float32 is not served"),
        (("--out", "."), ". is a folder"),
        (("--plot", "/dev/null/plot.png"), "cannot be written"),
        (("./nowhere",), "nowhere: is not a folder"),
    ],
)
def test_input_that_cannot_be_used(
    qwen36: Run,
    tmp_path: Path,
    gpu: list[dict[str, Any]],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    refused(qwen36("tune", "prefill", *arguments), tmp_path, words)
    assert gpu == []


def test_a_cache_that_cannot_be_written(
    qwen36: Run, here: Path, tmp_path: Path, gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN36_CACHE", "/dev/null/cache")
    refused(qwen36("tune", "prefill"), tmp_path, "cannot be written", "--out")
    assert gpu == []


def test_an_architecture_of_another_family(qwen36: Run, here: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    code, _, err = qwen36("tune", "prefill", tmp_path / "llama")
    assert code == 2
    assert "'llama'" in err


def test_the_profile_lies_where_start_up_looks(qwen36: Run, here: Path, gpu: list[dict[str, Any]]) -> None:
    code, out, err = qwen36("tune", "prefill")
    assert (code, err) == (0, "")
    profile = read(cache_path(CARD))
    assert profile.starts == made_up(command.TOKENS).profile.starts
    assert profile.card == CARD
    assert max(next(iter(profile.times_us.values()))["stock"]) == 8192
    assert f"{cache_path(CARD)} is used from the next start" in out
    assert "gate_up_proj" in out
    assert list(here.iterdir()) == []
    assert gpu[0]["dtype"] == "bfloat16"
    assert gpu[0]["fp8"] is True


def test_other_shapes_of_the_card_are_kept(qwen36: Run, here: Path, gpu: list[dict[str, Any]]) -> None:
    other = Shape("marlin", 256, 512, 4, 128, "bfloat16")
    same = next(iter(made_up().linears))
    write(cache_path(CARD), Profile("measured: before", {other: Starts(77), same: Starts(1, 1)}, CARD))
    assert qwen36("tune", "prefill")[0] == 0
    profile = read(cache_path(CARD))
    assert profile.starts[other] == Starts(77)
    assert profile.starts[same] != Starts(1, 1)


def test_a_profile_that_cannot_be_read_is_replaced(
    qwen36: Run, here: Path, gpu: list[dict[str, Any]]
) -> None:
    cache_path(CARD).parent.mkdir(parents=True)
    cache_path(CARD).write_text("{")
    code, out, _ = qwen36("tune", "prefill")
    assert code == 0
    assert "it was replaced" in " ".join(out.split())
    assert read(cache_path(CARD)).card == CARD


def test_a_place_and_a_picture_of_ones_own(qwen36: Run, here: Path, gpu: list[dict[str, Any]]) -> None:
    (here / "p").mkdir()
    code, out, _ = qwen36(
        *(
            "tune",
            "prefill",
            MINI,
            "--out",
            "p/profile.json",
            "--plot",
            "p/plot.png",
            "--rows",
            "512,128,512",
        ),
        *("--no-fp8", "--dtype", "float16", "--scratch-mib", "64"),
    )
    assert code == 0
    assert sorted(path.name for path in (here / "p").iterdir()) == ["plot.png", "profile.json"]
    assert (here / "p" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not cache_path(CARD).exists()
    times = next(iter(read(here / "p" / "profile.json").times_us.values()))
    assert {route: list(by) for route, by in times.items()} == {"stock": [128, 512], "exact": [128, 512]}
    expected = {"qwen36": {"prefill_profile": str(here / "p" / "profile.json"), "prefill_scratch_mib": 64}}
    assert f"--additional-config '{json.dumps(expected)}'" in out
    assert [kind.names for kind in gpu[0]["linears"]] == [
        ("in_proj_qkvz", "qkv_proj"),
        ("out_proj", "o_proj"),
        ("gate_up_proj",),
        ("down_proj",),
    ]
    assert (gpu[0]["dtype"], gpu[0]["scratch_mib"], gpu[0]["fp8"]) == ("float16", 64, False)


def test_json_is_all_that_is_printed(qwen36: Run, here: Path, gpu: list[dict[str, Any]]) -> None:
    code, out, err = qwen36("tune", "prefill", "--json", "--out", "profile.json")
    assert (code, err) == (0, "")
    printed = json.loads(out)["result"]
    assert printed["profile"] == json.loads((here / "profile.json").read_text())
    assert printed["path"] == "profile.json"
    assert printed["plot"] is None
    assert sum(linear["count"] for linear in printed["linears"]) == 256
    milliseconds = printed["milliseconds"]
    assert milliseconds["fp8"]["8192"] < milliseconds["auto"]["8192"] < milliseconds["stock"]["8192"]
    assert milliseconds["fp8"]["64"] == milliseconds["auto"]["64"] == milliseconds["stock"]["64"]


def test_listing_the_commands_imports_no_torch() -> None:
    script = (
        "import sys; from gptq_hybrid.cli import build_app; app = build_app(); "
        "assert 'tune' in [group.name for group in app.registered_groups]; "
        "heavy = {'torch', 'vllm', 'triton', 'matplotlib', 'numpy'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a8_is_measured_where_humming_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(machine, "find_spec", lambda name, there=there: there or None)
        assert machine.check_humming(None) is there
        assert machine.check_humming(False) is False
    with pytest.raises(HybridError, match="needs humming-kernels"):
        machine.check_humming(True)
