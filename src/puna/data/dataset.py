"""Shards of several sources -> one sequence of documents, conversations or preferences in a reproducible order.

The kind "labels" reads a teacher's labelled rows (labels.py).
"""

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from puna.data.document import Document
from puna.data.labels import LabelRows, find_labels
from puna.data.preference import Preference
from puna.data.shards import find_shards, open_shard
from puna.formats.chat.conversation import Conversation
from puna.pipeline.errors import ChatError, DataError

TEXTS = ("documents", "conversations")
LABELS = "labels"


class Dataset:
    """An ordered view over the shards of all sources.

    Args:
        sources: Directories, or single files named after their kind: `conversations-0.jsonl`.
        kinds: Kinds of rows to read, in this order within a source.

    Example:
        Dataset([Path("data/train")])[0]  # the first Document or Conversation
    """

    def __init__(self, sources: Sequence[Path], kinds: Sequence[str] = TEXTS):
        self.parts: list[tuple[str, Path, Sequence[Any]]] = []
        for source in sources:
            parts = [(kind, path, rows) for kind in kinds for path, rows in _shards(source, kind)]
            if not any(len(rows) for _, _, rows in parts):
                suffixes = {LABELS: "-*.safetensors"}
                names = " or ".join(kind + suffixes.get(kind, "*.jsonl / *.parquet") for kind in kinds)
                raise DataError(f"no rows in {source}", expected=names)
            self.parts += parts
        if not self.parts:
            raise DataError("an empty list of datasets", expected="at least one dataset")
        self.ends = list(accumulate(len(rows) for _, _, rows in self.parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Document | Conversation | Preference:
        """Read the row at `index`, from 0 to len - 1.

        Raises:
            DataError: A document is malformed; the error names file and row.
            ChatError: A conversation or preference is malformed; the error names file and row.
        """
        part, line = self._find(index)
        kind, _, rows = self.parts[part]
        if kind == LABELS:
            return rows[line]
        if kind == "documents":
            return Document.from_json(rows[line], where=self.location(index))
        try:
            return (Preference if kind == "preferences" else Conversation).from_json(rows[line])
        except ChatError as error:
            raise ChatError(
                f"{self.location(index)}: {error.given}", expected=error.expected, hint=error.hint
            ) from None

    def location(self, index: int) -> str:
        """Return "FILE row N" for error messages."""
        part, line = self._find(index)
        return f"{self.parts[part][1]} row {line + 1}"

    def _find(self, index: int) -> tuple[int, int]:
        part = bisect.bisect_right(self.ends, index)
        return part, index - (self.ends[part - 1] if part else 0)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return a permutation of the indices, a pure function of seed, epoch and length."""
        return np.random.default_rng((seed, epoch)).permutation(len(self))


def _shards(source: Path, kind: str) -> list[tuple[Path, Sequence[Any]]]:
    if kind == LABELS:
        return [(path, LabelRows(path)) for path in find_labels(source)]
    return [(path, open_shard(path)) for path in find_shards(source, kind)]
