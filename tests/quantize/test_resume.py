"""``qwen36 quantize``, killed with SIGKILL again and again, ends with the files of a run that never was.

One chain, as each process spends twenty seconds on starting: killed in the middle of a layer, killed while a
state is written, stopped by Ctrl-C, killed while the target is written, finished.
"""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.quantize.state import RunState, state_folder

SEED = 20
LAYERS = 4
# `dynamic`, which gptqmodel by itself refuses to continue: other bits, and a module left as it is.
RECIPE = r"""
description = "Rules for single modules."
[quantize_config]
bits = 4
group_size = 128
sym = true
desc_act = true
static_groups = true
[quantize_config.dynamic]
'+:^(?:model\.language_model|language_model\.model|model)\.layers\.(?:0|2)\.mlp\.down_proj$' = { bits = 8 }
'-:^(?:model\.language_model|language_model\.model|model)\.layers\.1\.mlp\.down_proj$' = {}
"""
WAIT_S = 240


@dataclass
class Chain:
    """The targets of the runs, and what was observed on the way."""

    whole: Path
    resumed: Path
    before_kill: list[int] = field(default_factory=list)
    ctrl_c: int | None = None
    half_target: bool = False
    target_before_last: bool = True
    screens: list[str] = field(default_factory=list)


def start(source: Path, target: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        str(Path(sys.executable).with_name("qwen36")), "quantize", str(source), str(target),
        "--recipe", str(target.parent / "rules.toml"), "--calibration", "demo",
        "--samples", "12", "--max-length", "128", *more,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(run: subprocess.Popen[str], due: Callable[[], bool]) -> None:
    """Return when ``due()``; a run that ends before it fails the test."""
    deadline = time.monotonic() + WAIT_S
    while not due():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_when(run: subprocess.Popen[str], due: Callable[[], bool], delay: float = 0.0) -> None:
    """SIGKILL, ``delay`` seconds after ``due()``."""
    wait_for(run, due)
    time.sleep(delay)
    run.kill()
    assert run.wait() == -signal.SIGKILL


def finish(run: subprocess.Popen[str]) -> str:
    screen, _ = run.communicate(timeout=WAIT_S)
    assert run.returncode == 0, screen
    return screen


@pytest.fixture(scope="module")
def chain(original: DemoCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "rules.toml").write_text(RECIPE)
    observed = Chain(folder / "whole", folder / "resumed")
    observed.screens.append(finish(start(original.path, observed.whole)))
    state, target = RunState(state_folder(observed.resumed)), observed.resumed
    objects = state.store / "objects"
    dice = random.Random(SEED)

    run = start(original.path, target)
    kill_when(run, lambda: state.layers() >= 1, dice.uniform(0.0, 0.3))
    observed.before_kill.append(state.layers())

    run = start(original.path, target)
    earlier = {path.name for path in objects.iterdir()}
    kill_when(run, lambda: any(path.name not in earlier for path in objects.iterdir()))
    observed.before_kill.append(state.layers())

    attempts = set(state.store.glob("attempt-*"))
    # How often a state is kept does not make it another run.
    run = start(original.path, target, "--state-every", "3")
    wait_for(run, lambda: bool(set(state.store.glob("attempt-*")) - attempts))
    # From making that folder to catching signals gptqmodel needs no time to speak of.
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    observed.screens.append(run.communicate(timeout=WAIT_S)[0])
    observed.ctrl_c = run.returncode
    observed.before_kill.append(state.layers())

    run = start(original.path, target)
    kill_when(run, lambda: any(folder.glob(".resumed.partial-*")))
    observed.before_kill.append(state.layers())
    observed.half_target = any(folder.glob(".resumed.partial-*"))
    observed.target_before_last = target.exists()

    observed.screens.append(finish(start(original.path, target)))
    return observed


def test_every_file_is_the_same_as_without_a_kill(chain: Chain) -> None:
    names = sorted(path.name for path in chain.whole.iterdir())
    assert names == sorted(path.name for path in chain.resumed.iterdir())
    different = [
        name for name in names if (chain.whole / name).read_bytes() != (chain.resumed / name).read_bytes()
    ]
    # It has the seconds that each module took.
    assert different in ([], ["quant_log.csv"])


def test_the_log_has_the_modules_of_all_runs_and_the_same_figures(chain: Chain) -> None:
    def log(folder: Path) -> list[dict[str, str]]:
        with (folder / "quant_log.csv").open(newline="") as stream:
            return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(stream)]

    whole, resumed = log(chain.whole), log(chain.resumed)
    assert whole == resumed
    # 25 modules, less the one that a rule leaves out.
    assert len(whole) == 24
    assert all(float(row["relative_error"]) > 0 and row["outcome"] == "gptq" for row in whole)
    assert {row["layer"] for row in whole} == {str(layer) for layer in range(LAYERS)}


def test_no_run_lost_a_layer_that_was_done(chain: Chain) -> None:
    first, second, stopped, last = chain.before_kill
    assert 1 <= first <= second <= first + 1
    assert stopped > second
    assert last == LAYERS


def test_ctrl_c_finishes_its_layer_and_says_how_to_go_on(chain: Chain) -> None:
    assert chain.ctrl_c == 130, chain.screens[1]
    screen = " ".join(chain.screens[1].split())
    assert f"continuing after layer {chain.before_kill[1]} of {LAYERS}" in screen
    assert "Stopping after this layer" in screen
    assert "Run the same command again" in screen
    assert "Traceback" not in screen


def test_a_kill_while_the_target_is_written_leaves_none(chain: Chain) -> None:
    assert chain.half_target
    assert not chain.target_before_last


def test_the_screen_says_what_is_continued_and_nothing_is_left_over(chain: Chain) -> None:
    whole, _, resumed = (" ".join(screen.split()) for screen in chain.screens)
    assert "state kept after each layer" in whole
    assert f"continuing after layer {LAYERS} of {LAYERS}" in resumed
    assert f"after {LAYERS} layers done before" in resumed
    left = {path.name for path in chain.whole.parent.iterdir()}
    assert left == {"rules.toml", "whole", "resumed"}
