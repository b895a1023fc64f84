"""What a terminal shows: how far a long piece of work is, and strangers' text made safe to print.

A live bar in a terminal, a line now and then elsewhere.
"""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 15.0
# Names in files and what models write may hold sequences that drive the terminal; only line breaks and tabs pass.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def printable(text: str) -> str:
    """Replace control characters, and what no encoding can write."""
    return text.encode("utf-8", "replace").decode().translate(_CONTROLS)


class Progress:
    """A count towards `total` with rate and ETA; work that was `done` before is not part of the rate."""

    def __init__(self, console: Console, total: int, description: str, *, unit: str, done: int = 0):
        self.console, self.total, self.description, self.unit = console, total, description, unit
        self.count = self.first = done
        self.start = self.last_line = time.monotonic()
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
        """Count `amount` more units; `note` says how the work goes (loss, rate)."""
        self.count += amount
        if self.bar:
            self.bar.update(self.task, completed=self.count, note=note)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.console.print(f"{self._line()}  {note}", markup=False, highlight=False)

    def _line(self) -> str:
        rate = (self.count - self.first) / max(1e-9, time.monotonic() - self.start)
        left = (self.total - self.count) / rate if rate else 0.0
        share = f"{self.count:,}/{self.total:,} {self.unit}"
        return f"{self.description}  {share}  {rate:,.1f} {self.unit}/s  {left:.0f}s left"


def _bar(console: Console) -> Bar:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    return Bar(*columns, console=console, transient=True)
