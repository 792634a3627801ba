"""Shared checkpoints: each is built once per session and never changed; tests copy what they damage."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.demo import DemoCheckpoint, DemoSpec, build_demo_checkpoint
from tests.log_lines import lines_from

SAMPLES, MAX_LENGTH = 24, 192

# If several workers run, each gets its own core: threads of two engines that spin on the same cores wait for each
# other. This must be set before torch is imported; processes that tests start inherit it.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    cores = sorted(os.sched_getaffinity(0))
    mine = str(cores[int(worker.removeprefix("gw")) % len(cores)])
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": mine}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, as those with engines: one that starts last would run on alone."""
    first = {
        item.path for item in items if item.get_closest_marker("engine") or item.get_closest_marker("long")
    }
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> DemoCheckpoint:
    """The constructed BF16 checkpoint, MTP inline, two shards."""
    return build_demo_checkpoint(tmp_path_factory.mktemp("demo") / "original")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DemoCheckpoint]:
    """Build a constructed checkpoint of another spec, once per spec."""
    built: dict[DemoSpec, DemoCheckpoint] = {}

    def make(**spec: Any) -> DemoCheckpoint:
        demo_spec = DemoSpec(**spec)
        if demo_spec not in built:
            built[demo_spec] = build_demo_checkpoint(tmp_path_factory.mktemp("demo") / "built", demo_spec)
        return built[demo_spec]

    return make


@pytest.fixture(scope="session")
def calibration(original: DemoCheckpoint) -> list[dict[str, list[int]]]:
    """Rows of unequal length: real text, CPython's documentation, through the chat template."""
    from transformers import AutoTokenizer

    from gptq_hybrid.calibration import encode_rows, load_rows

    rows = load_rows("demo", SAMPLES, 0)
    return encode_rows(rows, AutoTokenizer.from_pretrained(original.path), MAX_LENGTH)


class Quantized:
    """A finished quantization: its folder, and gptqmodel's model object."""

    def __init__(self, path: Path, model: Any) -> None:
        self.path = path
        self.model = model


@pytest.fixture(scope="session")
def quantized(
    original: DemoCheckpoint,
    calibration: list[dict[str, list[int]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Quantized]:
    """Quantize the constructed checkpoint through gptqmodel's own API, once per recipe and batch size."""
    made: dict[tuple[str, int], Quantized] = {}

    def run(recipe: str, batch_size: int = 1) -> Quantized:
        key = (recipe, batch_size)
        if key not in made:
            import gptq_hybrid
            from gptq_hybrid.recipes import load_recipe

            gptq_hybrid.register()
            from gptqmodel import GPTQModel

            chosen = load_recipe(recipe)
            target = tmp_path_factory.mktemp("quantized") / f"{chosen.name}-{batch_size}"
            model = GPTQModel.load(str(original.path), chosen.quantize_config())
            model.packaging = chosen.packaging
            model.quantize([dict(row) for row in calibration], batch_size=batch_size)
            model.save(str(target))
            made[key] = Quantized(target, model)
        return made[key]

    return run


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """A private copy of a checkpoint folder, to be damaged."""

    def copy(source: Path) -> Path:
        return Path(shutil.copytree(source, tmp_path / "copy"))

    return copy


@pytest.fixture
def separate(build: Callable[..., DemoCheckpoint], damaged: Callable[[Path], Path]) -> Path:
    """A private copy of the constructed checkpoint with its head in ``mtp.safetensors``."""
    return damaged(build(mtp="separate").path)


@pytest.fixture
def shown() -> Iterator[Callable[[], str]]:
    """What the plugin has logged so far, a line each, as ``LEVEL message``."""
    with lines_from(logging.DEBUG) as lines:
        yield lines


@pytest.fixture(autouse=True)
def settings_of_the_command_line() -> Iterator[None]:
    """What a command that ran in this process set (JSON, quiet, colours) is not for the next test."""
    yield
    terminal = sys.modules.get("gptq_hybrid.common.terminal")
    if terminal is not None:
        vars(terminal.SETTINGS).update(vars(terminal.Settings()))
