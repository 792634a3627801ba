"""An evaluation that is killed goes on where it was, and ends with the same file."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.streaming.rounded import CHECKPOINT, HELDOUT, rounded

# Every run is its own process, forked from one that has only imported: importing takes longer than the run.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["gptq_hybrid.evaluate", "transformers.models.qwen3_5.modeling_qwen3_5"])


def run(copy: Path, data: Path, out: Path, progress: Connection) -> None:
    """Run an evaluation that saves after every layer, and send its progress through the pipe."""
    from gptq_hybrid.evaluate import EvalRequest, evaluate, write_evaluation

    request = EvalRequest(
        CHECKPOINT, (copy,), (str(data),), max_length=64, device="cpu", work=out / "work", save_every=0.0
    )
    evaluation = evaluate(request, on_progress=lambda *step: progress.send(step))
    write_evaluation(out / "evaluation.json", evaluation)


def started(copy: Path, data: Path, out: Path) -> tuple[BaseProcess, Connection]:
    out.mkdir(exist_ok=True)
    reader, writer = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=run, args=(copy, data, out, writer))
    process.start()
    writer.close()
    return process, reader


def steps(reader: Connection, until: str | None = None) -> Iterator[str]:
    """Yield what is reported, up to ``until`` or the end."""
    while True:
        try:
            what, done, total = reader.recv()
        except EOFError:
            return
        yield f"{what} {done} {total}"
        if f"{what} {done} {total}" == until:
            return


def result(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return content


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("interrupted")
    data = folder / "documents"
    data.mkdir()
    for domain in ("en", "python"):
        lines = (HELDOUT / f"{domain}.jsonl").read_text().splitlines()[:2]
        (data / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    return rounded(folder / "w4", 4), data


@pytest.fixture(scope="module")
def undisturbed(material: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed")
    process, reader = started(*material, out)
    lines = list(steps(reader))
    process.join(120)
    assert process.exitcode == 0
    assert [line for line in lines if line.startswith("w4: layers")] == [
        f"w4: layers {i} 8" for i in range(9)
    ]
    return result(out)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_three_times_at_random_ends_with_the_same_file(
    material: tuple[Path, Path], undisturbed: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    places = [f"{what}: layers {i} 8" for what in ("reference", "w4") for i in range(1, 9)]
    out, reached = tmp_path / "out", -1
    for place in sorted(draw.sample(range(len(places)), 3)):
        process, reader = started(*material, out)
        lines = list(steps(reader, until=places[place]))
        # Anywhere in what follows the layer: between layers, or while states are being written.
        time.sleep(draw.random() * 0.1)
        process.kill()
        process.join(60)
        assert process.exitcode == -9
        assert not (out / "evaluation.json").exists()
        # A layer is reported once its states are saved, so none of those before is run again.
        first = next(line for line in lines if line.startswith(places[max(reached, 0)].split(":")[0]))
        if reached >= 0:
            assert int(first.split()[-2]) >= reached % 8 + 1
        reached = place
    process, reader = started(*material, out)
    assert list(steps(reader))
    process.join(120)
    assert process.exitcode == 0
    assert result(out) == undisturbed
    assert len(list((out / "work").iterdir())) == 1, "nothing half-written is left"
