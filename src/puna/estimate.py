"""Descriptions of artifacts that are not made yet -> estimates of the steps that read and write them.

`puna raise --dry-run` walks a recipe with these: each step estimates its cost from what is known of its inputs, and
describes its own output for the steps after it. Types of rows and networks belong to higher floors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class NotKnownYetError(Exception):
    """An estimate needs a property of an artifact that only the step itself will tell; `path` is that artifact.

    Example:
        >>> NotKnownYetError(Path("build/prune")).path.name
        'prune'
    """

    def __init__(self, path: Path):
        self.path = path
        super().__init__(str(path))


@dataclass(frozen=True)
class Sketch:
    """Known properties of an artifact before it is made; what is None or missing is not known.

    Attributes:
        network: `LlamaConfig` of a checkpoint, of the base where the artifact is an adapter.
        tokenizer: Path where the tokenizer lies already.
        samples: Some rows of a dataset by kind ("conversations"), as objects.
        num_rows: Number of all rows by kind; a few percent off where files are large.

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
    """Foreseen cost of a step on this machine.

    Attributes:
        seconds: Wall-clock time; None where the stage has no estimate.
        memory_bytes: Largest resident memory of the process; None where the stage has no estimate.
        sketch: Description of the output; None where only the step itself can tell.
        misfits: Settings that do not fit the data, a sentence each, with what to change.
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
    """Artifacts that a dry run knows: sketches of those that are not made yet; all others lie on the disk.

    Example:
        >>> known = Known()
        >>> known.pending[Path("build/ingest")] = Sketch(num_rows={"conversations": 600})
        >>> known.sketch(Path("build/ingest/conversations.jsonl")).num_rows
        {'conversations': 600}
    """

    def __init__(self) -> None:
        self.pending: dict[Path, Sketch | None] = {}

    def sketch(self, path: Path) -> Sketch | None:
        """Return the sketch of the pending artifact that `path` is or lies in; None where it lies on the disk.

        Raises:
            NotKnownYetError: The pending artifact has no sketch.
        """
        for pending, found in self.pending.items():
            if path == pending or pending in path.parents:
                if found is None:
                    raise NotKnownYetError(pending)
                return found
        return None
