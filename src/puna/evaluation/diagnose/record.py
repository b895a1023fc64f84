"""The records of a training run -> figures for the rules: means over parts of the run, totals, facts.

A figure without a record is None, since figures vary by objective and version. Rules then find nothing.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from puna.pipeline.artifacts import artifact
from puna.pipeline.storage.records import read_bounded, read_record, validate

METRICS, CONFIG, FACTS = (artifact.RECORD_PREFIX + name for name in ("metrics.jsonl", "config.json", "facts.json"))
MAX_METRICS_BYTES = 2**30
Table = dict[str, Any]
Numbers = dict[str, int | float | None]


@dataclass(frozen=True)
class Record:
    """Record of a training run.

    Attributes:
        stage: Verb of the stage, for example "sft".
        config: Settings (run_config.json).
        rows: Metrics, a row per step (run_metrics.jsonl).
        facts: Facts about data, model and tokenizer (run_facts.json).

    Example:
        >>> Record("sft", {}, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]).mean("loss", 0.0)
        1.5
    """

    stage: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """Read the records of the training run of the artifact at `path`; None for an artifact without a training run.

        Raises:
            ArtifactError: A record was altered or is unreadable.
        """
        if not (artifact.is_artifact(path) and (path / METRICS).is_file() and (path / CONFIG).is_file()):
            return None
        manifest, expected = artifact.read_manifest(path), "the records of a training run"
        artifact.verify_files(path, manifest, [name for name in (METRICS, CONFIG, FACTS) if (path / name).is_file()])
        facts = read_record(path / FACTS, Table, expected=expected, allow_nan=True) if (path / FACTS).is_file() else {}
        config = read_record(path / CONFIG, Table, expected=expected)
        lines = read_bounded(path / METRICS, max_bytes=MAX_METRICS_BYTES).splitlines()
        rows = [
            validate(line, Numbers, f"{path / METRICS} line {number}", expected=expected)
            for number, line in enumerate(lines, start=1)
        ]
        record = cls(manifest.stage, config, rows, facts)
        return record if record.has("loss") else None

    @property
    def token_loss(self) -> str:
        """Name of the cross-entropy on the text: "token_loss" if recorded, otherwise "loss"."""
        return "token_loss" if self.has("token_loss") else "loss"

    @property
    def num_steps(self) -> int:
        return len(self.rows)

    def has(self, name: str) -> bool:
        """Tell whether any step recorded `name`."""
        return any(row.get(name) is not None for row in self.rows)

    def values(self, name: str, first: float = 0.0, last: float = 1.0) -> np.ndarray:
        """Return the recorded values of `name`, from share `first` to share `last` of the run (0 to 1)."""
        start = min(int(first * self.num_steps), max(0, self.num_steps - 1))
        rows = self.rows[start : max(start + 1, math.ceil(last * self.num_steps))]
        return np.array([row[name] for row in rows if row.get(name) is not None], dtype=float)

    def mean(self, name: str, first: float = 0.9, last: float = 1.0) -> float | None:
        """Return the mean of `name` over a part of the run, by default the last tenth."""
        values = self.values(name, first, last)
        return float(values.mean()) if len(values) else None

    def total(self, name: str) -> float | None:
        """Return the sum of `name` over all steps."""
        values = self.values(name)
        return float(values.sum()) if len(values) else None

    def fall(self, name: str, before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
        """Return the fall of `name` between two parts of the run, with the standard error.

        Differences of neighbouring steps give the noise: a trend inside a part does not count as noise.
        """
        one, other = self.values(name, *before), self.values(name, *after)
        if not (len(one) and len(other)):
            return 0.0, math.inf
        return float(one.mean() - other.mean()), math.hypot(_error(one), _error(other))


def _error(values: np.ndarray) -> float:
    """Return the standard error of a mean, from the mean square of successive differences (von Neumann, 1941)."""
    if len(values) < 2:
        return math.inf
    return math.sqrt(float((np.diff(values) ** 2).mean()) / 2 / len(values))
