"""Progress off a terminal: lines, with the time left, no more than somebody wants to read."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gptq_hybrid.common import progress as module
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.terminal import SETTINGS
from gptq_hybrid.common.units import duration_text


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def count(
    clock: Clock, total: int, seconds: float, *, terminal: bool = False, stop: int | None = None
) -> str:
    out = io.StringIO()
    with counting_bars(Console(file=out, force_terminal=terminal, width=200)) as bars:
        task = bars.add_task("layers", total=None)
        bars.update(task, completed=0, total=total)
        for done in range(1, (stop or total) + 1):
            clock.now += seconds
            bars.update(task, completed=done, total=total)
        bars.finish(task)
    return out.getvalue()


def test_a_line_a_layer_with_the_time_left(clock: Clock) -> None:
    assert count(clock, 4, 90).splitlines() == [
        "layers: 0/4, 0 s",
        "layers: 1/4, 1 min 30 s, about 4 min 30 s left",
        "layers: 2/4, 3 min, about 3 min left",
        "layers: 3/4, 4 min 30 s, about 1 min 30 s left",
        "layers: 4/4, 6 min, done",
    ]


def test_a_long_count_gets_a_line_each_ten_seconds(clock: Clock) -> None:
    lines = count(clock, 4096, 0.1).splitlines()
    assert 40 <= len(lines) <= 43
    assert lines[-1].endswith("done")


def test_what_takes_no_time_gets_two_lines(clock: Clock) -> None:
    assert len(count(clock, 24, 0.001).splitlines()) == 2


def test_a_count_that_ends_early_ends_whole(clock: Clock) -> None:
    assert count(clock, 4096, 0.01, stop=18).splitlines()[-1] == "layers: 18/18, 0 s, done"


def test_quiet_shows_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SETTINGS, "quiet", True)
    assert count(clock, 4, 90) == ""
    assert "layers" not in count(clock, 4, 90, terminal=True)


def test_a_terminal_gets_a_bar(clock: Clock) -> None:
    shown = count(clock, 4, 90, terminal=True)
    assert "about" not in shown
    assert "4/4" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (1230, "20 min"),
        (18600, "5 h 10 min"),
        (7200, "2 h"),
    ],
)
def test_times_have_the_units_that_matter(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
