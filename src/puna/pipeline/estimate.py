"""Sketches of pending artifacts -> estimates of the steps around the artifacts.

`puna raise --dry-run` walks a recipe with the classes below. A step estimates its cost from the known properties of the
inputs, and sketches the output for later steps. Types of rows and networks belong to higher floors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class NotKnownYetError(Exception):
    """An estimate needs an unknown property of a pending artifact; `path` is the artifact.

    Example:
        >>> NotKnownYetError(Path("build/prune")).path.name
        'prune'
    """

    def __init__(self, path: Path):
        self.path = path
        super().__init__(str(path))


@dataclass(frozen=True)
class Sketch:
    """Known properties of a pending artifact; None or a missing key stands for an unknown property.

    Attributes:
        network: `LlamaConfig` of a checkpoint; for an adapter, the `LlamaConfig` of the base.
        tokenizer: Path of a tokenizer already on the disk.
        samples: Some rows of a dataset by kind ("conversations"), as objects.
        num_rows: Number of all rows by kind; a few percent off for large files.

    Example:
        >>> Sketch(num_rows={"conversations": 600}).num_rows["conversations"]
        600
    """

    network: Any = None
    tokenizer: Path | None = None
    samples: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a step on the current machine.

    Attributes:
        seconds: Wall-clock time; None if the stage has no estimate.
        memory_bytes: Peak resident memory of the process; None if the stage has no estimate.
        sketch: Sketch of the output; None if the output is known only after the step has run.
        misfits: Sentences about settings unfit for the data, with the setting to change.
        note: Size of the work in a few words: "1,200 steps of 4,096 tokens".

    Example:
        >>> Estimate(seconds=90.0, memory_bytes=2**30, note="480 steps").misfits
        ()
    """

    seconds: float | None = None
    memory_bytes: int | None = None
    sketch: Sketch | None = None
    misfits: tuple[str, ...] = ()
    note: str = ""


class Known:
    """Artifacts known to a dry run: sketches of pending artifacts; every artifact without a sketch is on the disk.

    Example:
        >>> known = Known()
        >>> known.pending[Path("build/ingest")] = Sketch(num_rows={"conversations": 600})
        >>> known.sketch(Path("build/ingest/conversations.jsonl")).num_rows
        {'conversations': 600}
    """

    def __init__(self) -> None:
        self.pending: dict[Path, Sketch | None] = {}

    def sketch(self, path: Path) -> Sketch | None:
        """Return the sketch of the pending artifact at or above `path`; None if `path` is not pending.

        Raises:
            NotKnownYetError: The pending artifact has no sketch.
        """
        pending = self.pending_artifact(path)
        if pending is None:
            return None
        sketch = self.pending[pending]
        if sketch is None:
            raise NotKnownYetError(pending)
        return sketch

    def pending_artifact(self, path: Path) -> Path | None:
        """Return the pending artifact at or above `path`; None if `path` is not pending."""
        return next((pending for pending in self.pending if path == pending or pending in path.parents), None)
