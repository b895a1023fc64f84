"""An execution of a stage: output directory, log, metrics, progress and state for resuming.

`execution/executor.py` turns an execution into an artifact.
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
    """The second argument of every stage: `run(config, run)`.

    Attributes:
        stage: Verb of the stage.
        key: Key of the artifact.
        output: Directory of the future artifact.
        directory: Directory that survives interruptions of a run with the same key: metrics.jsonl, log.txt, journals.
        licences: Licences found by the stage in the inputs' content; added to the inherited licences.
        records: Names of output files with speeds, times or paths, excluded from the content hash.
        hashes: Content hash of every input by role.
        kind: Kind of the artifact, where it differs from the first kind in the stage table.
        is_preview: Whether the stage only shows the planned work.
        rank: Rank of the process; only rank 0 logs and writes.
        num_ranks: Number of processes of the stage.

    Example:
        >>> def run(config: Config, run: Run) -> None:
        ...     run.log("started")
        ...     (run.output / "labels.txt").write_text("positive")
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
        """Print a line, and append the line to log.txt."""
        if self.rank:
            return
        text = printable(text)
        self.console.print(text, markup=False, highlight=False)
        self._append("log.txt", f"{datetime.now().isoformat(timespec='seconds')} {text}\n")

    def journal(self, name: str) -> Journal:
        """Open a journal for resuming a piece of work; `records` holds the results of interrupted executions.

        Raises:
            ArtifactError: The file was damaged; the message names the file and the remedy.
        """
        return Journal(self.directory / JOURNALS / f"{name}.jsonl", self.key, self.log)

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the stored value of an interrupted execution, or call `make` and store the value as JSON.

        Only rank 0 stores values; `make` must return equal values in all processes.
        """
        if self.rank:
            return make()
        journal = self.journal(name)
        return journal.records[-1] if journal.records else journal.append(make())

    def secret(self, variable: str) -> str:
        """Return the value of an environment variable, without storing the value anywhere.

        Raises:
            ConfigError: The variable is empty or not set.
        """
        value = os.environ.get(variable, "")
        if not value:
            raise ConfigError(f"the environment variable {variable} is not set", expected="an API key")
        return value

    def metrics(self, step: int, **values: float) -> None:
        """Append a row to metrics.jsonl; NaN and infinity become null, since JSON has neither."""
        if self.rank:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append("metrics.jsonl", json.dumps({"step": step, **finite}) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the rows of metrics.jsonl up to the first row cut short by a crash."""
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
        """Make metrics.jsonl durable before a state that relies on the rows; return the SHA-256 of the file."""
        if self.rank:
            return ""
        path = self.directory / "metrics.jsonl"
        fsync(path)
        fsync(self.directory)
        return hash_file(path)

    def rewind_metrics(self, step: int, sha256: str = "") -> None:
        """Drop the rows after `step`, written again by a resumed stage.

        Args:
            sha256: Hash from `keep_metrics` at the same step; "" skips the check.

        Raises:
            ArtifactError: The rows up to `step` have a different hash.
        """
        path = self.directory / "metrics.jsonl"
        if self.rank:
            return
        is_there = path.exists()
        rows = [json.dumps(row) + "\n" for row in self.read_metrics() if row["step"] <= step]
        text = "".join(rows)
        if is_there and sha256 and hashlib.sha256(text.encode()).hexdigest() != sha256:
            hint = f"Delete the file: the run resumes after step {step}, and the records begin there"
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
        """Open a progress bar with rate and remaining time over `total` units, `done` units finished before."""
        return Progress(self.console, total, f"{self.stage}: {description}", unit=unit, done=done)


def ranks() -> tuple[int, int]:
    """Return rank and number of processes, as set by torchrun; (0, 1) without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def num_restarts() -> int:
    """Return the number of restarts of the process by torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def elapsed(start: float) -> str:
    """Return the time since `start` (time.monotonic) in words: "1m 05s"."""
    return duration(time.monotonic() - start)
