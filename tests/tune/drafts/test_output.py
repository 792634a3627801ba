"""How ``qwen36 tune drafts`` shows its result."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gptq_hybrid.common import figures
from tests.tune.drafts.made import ENVIRONMENT, all_cells, grid, measured
from tests.tune.drafts.test_choose import MIXED
from vllm_qwen36_plugin.tune.drafts import picture
from vllm_qwen36_plugin.tune.drafts.choose import recommend
from vllm_qwen36_plugin.tune.drafts.grid import Cell, Grid
from vllm_qwen36_plugin.tune.drafts.result import CellResult, Results, percentile
from vllm_qwen36_plugin.tune.drafts.table import cells_table, meaning, serve_line


def shown(grid: Grid, times: dict[tuple[int, int], list[float]]) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    cells = all_cells(grid, times)
    console.print(cells_table(grid, cells, recommend(grid, cells)))
    return console.export_text()


def paragraphs(grid: Grid, times: dict[tuple[int, int], list[float]]) -> str:
    return "\n".join(meaning(grid, recommend(grid, all_cells(grid, times))))


def test_a_row_a_cell() -> None:
    text = shown(grid(), MIXED)
    assert max(len(line) for line in text.splitlines()) <= 80
    # TPOT; 95 % of 4.41, 4.9, 5.88, 4.5, 5, 6, 4.59, 5.1, 6.12; TTFT; tokens a second; 1 + 800/1000 + 400/1000.
    rows = [line.split() for line in text.splitlines()]
    assert ["2", "5.00", "6.07", "55.00", "200.0", "2.20", "80", "40"] in rows
    assert ["short", "110", "1", "0", "10.00", "12.07", "55.00", "100.0", "–", "–"] in rows
    assert sum(bool(row) and row[0] in ("short", "long") for row in rows) == 4


def test_the_flag_and_the_command_to_use() -> None:
    text = paragraphs(grid(), MIXED)
    assert (
        "1 draft: the time per token is 20.6 % shorter than with no drafts over the 4 cases"
        in text.replace("\n", " ")
    )
    assert "best by itself: 2 drafts at batch 1 (short), batch 1 (long)." in text
    command = shlex.split(serve_line(grid(), recommend(grid(), all_cells(grid(), MIXED))))
    assert command[:2] == ["vllm", "serve"]
    assert command[-4:-2] == ["--kv-cache-dtype", "fp8"]
    assert json.loads(command[-1]) == {"method": "mtp", "num_speculative_tokens": 1}


def test_drafts_by_batch_are_told_and_in_the_command() -> None:
    measured = grid(by_batch=True)
    assert "2 drafts for 1, 1 draft for 2 to 4 at once" in paragraphs(measured, MIXED)
    line = serve_line(measured, recommend(measured, all_cells(measured, MIXED)))
    assert json.loads(shlex.split(line)[-1])["num_speculative_tokens_per_batch_size"] == [
        [1, 1, 2],
        [2, 4, 1],
    ]


def test_the_part_that_it_costs_most_is_named() -> None:
    times = MIXED | {(1, 4): [13.2, 13.3, 13.1]}
    assert "It costs most at batch 4, " in paragraphs(grid(counts=(0, 1)), times)
    assert "It costs most" not in paragraphs(grid(), MIXED)


def test_no_drafts_means_no_flag() -> None:
    slow = {key: [at * (1 + key[0]) for at in [10.0, 10.1, 9.9]] for key in MIXED}
    text = paragraphs(grid(), slow)
    assert "No drafts: no more drafts are faster" in text
    assert "Serve without --speculative-config" in text
    assert "speculative" not in serve_line(grid(), recommend(grid(), all_cells(grid(), slow)))


def test_what_repeats_cannot_tell_is_stated() -> None:
    near = {key: [10.0, 10.1, 9.9] if key[0] < 2 else [9.9, 10.2, 9.5] for key in MIXED}
    assert "No drafts: 2 drafts took the least time per token" in paragraphs(grid(), near)
    steady = MIXED | {(2, 4): [15.05, 15.16, 14.9]}
    text = paragraphs(grid(), steady)
    assert text.startswith("1 draft: ")
    assert "2 drafts are no faster beyond what repeats differ by" in text


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    cell = Cell(2, 4, "long")
    one = measured(cell, [5.0, 5.1, 4.9])
    assert CellResult.from_json(json.loads(json.dumps(one.as_json()))) == one
    settings = grid().settings(ENVIRONMENT)
    results = Results.open(tmp_path / "r.json", settings)
    results.add(one)
    assert Results.open(tmp_path / "r.json", settings).cells == {cell: one}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2
    assert percentile(range(101), 0.95) == pytest.approx(95)
    assert percentile([7.0], 0.95) == 7


@pytest.mark.parametrize("counts", [(0, 1, 2), (0,)])
def test_apicture_with_a_column_a_context(
    counts: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures: list[Any] = []
    save = figures.save

    def saved(figure: Any, path: Path) -> None:
        pictures.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save", saved)
    drawn = grid(counts=counts)
    cells = all_cells(drawn, MIXED)
    recommendation = recommend(drawn, cells)
    picture.plot(drawn, cells, recommendation, ENVIRONMENT, tmp_path / "new" / "p.png")
    assert (tmp_path / "new" / "p.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = pictures
    assert len(figure.axes) == (4 if any(counts) else 2)
    for ax, context in zip(figure.axes, drawn.contexts, strict=False):
        lines = [
            list(line.get_ydata()) for line in ax.get_lines() if len(line.get_xdata()) == len(counts) > 1
        ]
        for batch in drawn.batches if len(counts) > 1 else ():
            assert [cells[Cell(count, batch, context)].tpot for count in counts] in lines
    if any(counts):
        shares = [list(line.get_ydata()) for line in figure.axes[2].get_lines()]
        assert shares == [[80.0, 40.0], [80.0, 40.0]]
