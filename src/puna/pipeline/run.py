"""One execution of a stage: what it is given beside its config, and what it leaves for people to look at.

Keeps metrics.jsonl, a log and progress. How an execution becomes an artifact is `raising/`.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ArtifactError, ConfigError
from puna.pipeline.progress import Progress, duration, printable
from puna.pipeline.storage.files import fsync, hash_file, naming
from puna.pipeline.storage.journal import Journal

JOURNALS = "journals"


@dataclass
class Run:
    """What a stage is given beside its config.

    `licences` are those that the stage finds in what it reads, beside its inputs' own; `kind` is what it writes, where
    that is not what the stage usually writes. `output` becomes the artifact;
    `directory` stays between interrupted executions of the same key and holds
    metrics.jsonl, log.txt and whatever the stage needs to resume. Of several processes that run a stage together only
    the one of rank 0 logs and writes. `is_preview`: only show what would
    be done. `records`: files of the output that hold speeds, times or paths; they do not count as content.
    `hashes`: role of an input -> hash of the content.
    """

    stage: str
    key: str
    output: Path
    directory: Path
    console: Console
    licences: set[str] = field(default_factory=set)
    records: set[str] = field(default_factory=set)
    hashes: dict[str, str] = field(default_factory=dict)
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
        self._append("log.txt", f"{datetime.now().isoformat(timespec='seconds')} {text}\n")

    def journal(self, name: str) -> Journal:
        """Open the journal of one piece of work: its records are those of the interrupted executions before this one.

        Raises:
            ArtifactError: The file was damaged; the message names the file and the way out.
        """
        return Journal(self.directory / JOURNALS / f"{name}.jsonl", self.key, self.log)

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what an interrupted execution made under this name, otherwise make the value and keep it as JSON.

        Only the process of rank 0 keeps anything; `make` must give every process the same value.
        """
        if self.rank:
            return make()
        journal = self.journal(name)
        return journal.records[-1] if journal.records else journal.append(make())

    def secret(self, variable: str) -> str:
        """Return the value of an environment variable, which is stored nowhere; ConfigError for an empty one."""
        value = os.environ.get(variable, "")
        if not value:
            raise ConfigError(f"the environment variable {variable} is not set", expected="a key in it")
        return value

    def metrics(self, step: int, **values: float) -> None:
        """Append one row to metrics.jsonl; NaN and infinity, which JSON lacks, become null."""
        if self.rank:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append("metrics.jsonl", json.dumps({"step": step, **finite}) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the rows of metrics.jsonl up to the first that a crash cut short."""
        path = self.directory / "metrics.jsonl"
        rows: list[dict[str, Any]] = []
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                break
            rows.append(row)
        return rows

    def keep_metrics(self) -> str:
        """Make metrics.jsonl durable, for a state that relies on the rows; return SHA-256 of the file."""
        if self.rank:
            return ""
        path = self.directory / "metrics.jsonl"
        fsync(path)
        fsync(self.directory)
        return hash_file(path)

    def rewind_metrics(self, step: int, sha256: str = "") -> None:
        """Drop the rows after `step`: a resumed stage writes them again.

        Raises:
            ArtifactError: The rows up to `step` are not those of `sha256`, as `keep_metrics` returned it at that step.
        """
        path = self.directory / "metrics.jsonl"
        if self.rank:
            return
        is_there = path.exists()
        rows = [json.dumps(row) + "\n" for row in self.read_metrics() if row["step"] <= step]
        text = "".join(rows)
        if is_there and sha256 and hashlib.sha256(text.encode()).hexdigest() != sha256:
            hint = f"Delete it: the run goes on after step {step}, and its records begin there"
            raise ArtifactError(f"{path} was altered or cut short", expected=f"the rows up to step {step}", hint=hint)
        artifact.write_text(path, text)

    def _append(self, name: str, text: str) -> None:
        path = self.directory / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise naming(error, path) from None

    def progress(self, total: int, description: str, *, unit: str = "it", done: int = 0) -> Progress:
        """Open a progress bar with rate and ETA over `total` units, `done` of them already there."""
        return Progress(self.console, total, f"{self.stage}: {description}", unit=unit, done=done)


def ranks() -> tuple[int, int]:
    """Return rank and number of processes, as set by torchrun; (0, 1) without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def num_restarts() -> int:
    """Return how often torchrun has started this process anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def elapsed(start: float) -> str:
    """Say how long ago `start` (time.monotonic) was: "1m 05s"."""
    return duration(time.monotonic() - start)
