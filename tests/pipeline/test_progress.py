"""What progress shows: a rate that a reader can use, and the time that is left at that rate."""

import io
import re

import pytest
from rich.console import Console

from puna.pipeline import progress
from puna.pipeline.progress import Progress, duration


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def last_line(
    clock: Clock, seconds: list[float], total: int, *, unit: str = "layers", done: int = 0, terminal: bool = False
) -> str:
    """Advance after each of these times and return what is shown last."""
    out = io.StringIO()
    bar = Progress(
        Console(file=out, width=200, force_terminal=terminal), total, "prune: measuring", unit=unit, done=done
    )
    with bar:
        for each in seconds:
            clock.now += each
            bar.last_line = clock.now - progress.SECONDS_BETWEEN_LINES
            bar.advance(note="loss 1.5")
        if bar.bar:
            bar.bar.refresh()
    return re.split("[\r\n]+", out.getvalue().strip())[-1] if not terminal else out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "total", "pace"),
    [
        ([5.0, 5.0], 4, "12.0 layers/min  10s left"),
        ([0.1] * 21, 41, "10.0 layers/s  2s left"),
        ([1.0] * 5, 10, "1.0 layers/s  5s left"),
        ([600.0, 600.0], 32, "6.0 layers/h  5h 00m left"),
        ([30.0] * 3, 16, "2.0 layers/min  6m 30s left"),
        ([7200.0] * 3, 27, "12.0 layers/day  2d 00h left"),
        ([200_000.0] * 2, 3, "0.4 layers/day  2d 07h left"),
    ],
)
def test_the_rate_has_a_span_in_which_a_unit_is_done_and_the_time_left_agrees(clock, seconds, total, pace):
    shown = last_line(clock, seconds, total)
    assert shown == f"prune: measuring  {len(seconds)}/{total} layers  {pace}  loss 1.5"
    assert pace in last_line(clock, seconds, total, terminal=True)


def test_the_start_before_the_first_unit_is_no_part_of_the_rate(clock):
    assert "1.0 layers/s  7s left" in last_line(clock, [60.0, 1.0, 1.0], 10)


def test_work_that_was_done_before_is_no_part_of_the_rate(clock):
    assert "12.0 rows/min  25s left" in last_line(clock, [5.0] * 3, 100, unit="rows", done=92)


def test_without_a_finished_unit_nothing_is_promised(clock):
    out = io.StringIO()
    with Progress(Console(file=out, width=200), 9, "answer", unit="rows", done=3) as bar:
        clock.now += 60
        bar.advance(0)
    assert out.getvalue().strip() == "answer  3/9 rows"


def test_times_have_two_units():
    shown = [duration(seconds) for seconds in (0.9, 59.9, 60, 65, 3600, 7325, 90_000)]
    assert shown == ["0s", "59s", "1m 00s", "1m 05s", "1h 00m", "2h 02m", "1d 01h"]
