"""One execution of a stage: what it is given beside its config, and what it leaves for people to look at.

Keeps metrics.jsonl, a log and progress. How an execution becomes an artifact is `raising/`.
"""

import json
import math
import os
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from puna import artifact
from puna.errors import ConfigError
from puna.progress import Progress, printable


class EndOfPreview(Exception):
    """Ends a stage that was only asked what it would do, once it has told."""


@dataclass
class Run:
    """What a stage is given beside its config.

    `licences` are those that the stage finds in what it reads, beside its inputs' own; `kind` is what it writes, where
    that is not what the stage usually writes. `output` becomes the artifact;
    `directory` stays between interrupted executions of the same key and holds
    metrics.jsonl, log.txt and whatever the stage needs to resume. Of several processes that run a stage together only
    the one of rank 0 logs and writes. `is_preview`: only show what would
    be done.
    """

    stage: str
    key: str
    output: Path
    directory: Path
    console: Console
    licences: set[str] = field(default_factory=set)
    kind: str = ""
    is_preview: bool = False
    rank: int = 0
    num_ranks: int = 1

    def log(self, text: str) -> None:
        """Print a line and append it to the log."""
        if self.rank:
            return
        text = printable(text)
        self.console.print(text, markup=False, highlight=False)
        with (self.directory / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now().isoformat(timespec='seconds')} {text}\n")

    def secret(self, variable: str) -> str:
        """Return what an environment variable holds; ConfigError if it holds nothing. It is kept nowhere."""
        value = os.environ.get(variable, "")
        if not value:
            raise ConfigError(f"the environment variable {variable} is not set", expected="a key in it")
        return value

    def metrics(self, step: int, **values: float) -> None:
        """Append one row to metrics.jsonl; what is not finite becomes null, since JSON has no NaN."""
        if self.rank:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the whole rows of metrics.jsonl; a row cut short by a crash is left out."""
        path = self.directory / "metrics.jsonl"
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(row) for row in rows if row.endswith("}")]

    def rewind_metrics(self, step: int) -> None:
        """Drop the rows after `step`: a resumed stage writes them again."""
        if self.rank:
            return
        rows = [json.dumps(row) + "\n" for row in self.read_metrics() if row["step"] <= step]
        artifact.write_text(self.directory / "metrics.jsonl", "".join(rows))

    def progress(self, total: int, description: str, *, unit: str = "it", done: int = 0) -> Progress:
        """Open a progress bar with rate and ETA over `total` units, `done` of them already there."""
        return Progress(self.console, total, f"{self.stage}: {description}", unit=unit, done=done)


def ranks() -> tuple[int, int]:
    """Return which of how many processes this is, as torchrun tells them: (0, 1) without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def num_restarts() -> int:
    """Return how often torchrun has started this process anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def elapsed(start: float) -> str:
    """Say how long ago `start` (time.monotonic) was: "1m 05s"."""
    seconds = int(time.monotonic() - start)
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
