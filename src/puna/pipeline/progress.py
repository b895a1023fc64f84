"""Progress bars and safe text for the terminal.

A terminal shows a live bar. Files and pipes get a line every 15 seconds.
"""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 15.0
# Time units of the rate; the first with at least one finished unit of work is shown.
SPANS = {"s": 1, "min": 60, "h": 3600, "day": 86_400}
# NOTE: names of files and outputs of models may hold terminal control sequences; only line breaks and tabs pass.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def printable(text: str) -> str:
    """Replace control characters and lone surrogates, so file names and model outputs cannot control the terminal."""
    return text.encode("utf-8", "replace").decode().translate(_CONTROLS)


def duration(seconds: float) -> str:
    """Format a duration in the two largest units.

    Example:
        >>> duration(65), duration(3 * 3600 + 120)
        ('1m 05s', '3h 02m')
    """
    whole = int(seconds)
    for large, small, size, part in (("d", "h", 86_400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size}{large} {whole % size // part:02d}{small}"
    return f"{whole}s"


class Progress:
    """A count towards `total` with rate and remaining time; the rate excludes units already `done` at the start.

    The measured time starts at the first advance: the time before includes start-up work, such as loading a model.

    Example:
        >>> with Progress(Console(), 32, "pruning", unit="layers") as bar:
        ...     bar.advance(note="loss 2.1")
    """

    def __init__(self, console: Console, total: int, description: str, *, unit: str, done: int = 0):
        self.console, self.total, self.description, self.unit = console, total, description, unit
        self.count = done
        self.last_line = time.monotonic()
        self._start = (self.last_line, done)  # time and count at the start of the measurement
        self._first: tuple[float, int] | None = None
        self.bar = _bar(console) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self.bar:
            self.task = self.bar.add_task(self.description, total=self.total, completed=self.count, note="")
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more units; `note` is a short state of the work: "loss 2.1"."""
        self.count += amount
        if amount > 0 and self._first is None:
            self._first = (time.monotonic(), self.count)
        elif amount > 0:
            assert self._first
            self._start = self._first
        shown = "  ".join(filter(None, (self.unit, self._pace(), note)))
        if self.bar:
            self.bar.update(self.task, completed=self.count, note=shown)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            line = f"{self.description}  {self.count:,}/{self.total:,} {shown}"
            self.console.print(line, markup=False, highlight=False)

    def _pace(self) -> str:
        """Return the rate, over the shortest time span with a whole unit of work, and the remaining time."""
        begin, before = self._start
        seconds, done = time.monotonic() - begin, self.count - before
        if done <= 0 or seconds <= 0:
            return ""
        rate = done / seconds
        span = next((name for name, size in SPANS.items() if rate * size >= 1), "day")
        return f"{rate * SPANS[span]:,.1f} {self.unit}/{span}  {duration((self.total - self.count) / rate)} left"


def _bar(console: Console) -> Bar:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    return Bar(*columns, console=console, transient=True)
