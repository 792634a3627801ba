"""A made-up measurement of ``qwen36 tune drafts``, and the command run against a fake ``vllm serve``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gptq_hybrid.calibration.prompts import Prompt, Prompts
from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.vllm_server import Acceptance
from vllm_qwen36_plugin.tune.drafts.grid import Cell, Grid
from vllm_qwen36_plugin.tune.drafts.result import CellResult, Repeat

MINI = Path(__file__).parents[3] / "bench" / "mini" / "checkpoint"
FAKE = Path(__file__).with_name("fake_vllm.py")
ENVIRONMENT = {"device": "A card", "python": "3.12", "vllm": "0.26.0"}


@cache
def mini() -> Checkpoint:
    """The small trained checkpoint: BF16, an MTP head, a chat template."""
    return Checkpoint.open(MINI)


def grid(**changes: Any) -> Grid:
    """A grid for it, of 0 to 2 drafts at batches 1 and 4, short and long."""
    values: dict[str, Any] = {
        "checkpoint": mini(),
        "prompts": Prompts(Path("p.jsonl"), (Prompt(text="a b", content="a b"),)),
        "arguments": (str(MINI), "--max-num-seqs", "4"),
        "recommended": (str(MINI), "--kv-cache-dtype", "fp8"),
        "counts": (0, 1, 2),
        "batches": (1, 4),
        "contexts": ("short", "long"),
        "long_tokens": 1024,
        "max_tokens": 64,
        "temperature": 0.0,
        "requests": None,
        "repeats": 3,
        "on_cpu": False,
    }
    return Grid(**(values | changes))


def measured(cell: Cell, tpot: Sequence[float]) -> CellResult:
    """A cell whose repeats have these times per token; each position has half the drafts of the one before."""
    per_position = tuple(800 >> position for position in range(cell.drafts))
    counts = Acceptance(1000, 1000 * cell.drafts, sum(per_position), per_position)
    repeats = (Repeat((at * 0.9, at, at * 1.2), (50.0, 60.0), (100, 120), 192, at * 192 / 1e3) for at in tpot)
    return CellResult(cell, tuple(repeats), counts if cell.drafts else Acceptance(0, 0, 0, ()))


def all_cells(grid: Grid, tpot: Mapping[tuple[int, int], Sequence[float]]) -> dict[Cell, CellResult]:
    """Every cell of a grid, by (drafts, batch); in a long context everything takes twice as long."""
    return {
        cell: measured(
            cell, [(2 if cell.context == "long" else 1) * at for at in tpot[cell.drafts, cell.batch]]
        )
        for cell in grid.all_cells
    }
