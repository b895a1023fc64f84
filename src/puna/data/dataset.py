"""Shards of several sources -> one sequence of documents and conversations, in an order that can be found again."""

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from puna.chat.conversation import Conversation
from puna.data.document import Document
from puna.data.shards import find_shards, open_shard
from puna.errors import DataError

KINDS = {"documents": Document.from_json, "conversations": Conversation.from_json}


class Dataset:
    """An ordered view over the shards of `sources`: directories, or files named documents* or conversations*."""

    def __init__(self, sources: Sequence[Path], kinds: Sequence[str] = tuple(KINDS)):
        self.parts = [
            (kind, path, open_shard(path)) for source in sources for kind in kinds for path in find_shards(source, kind)
        ]
        self.ends = list(accumulate(len(rows) for _, _, rows in self.parts))
        if not len(self):
            names = " or ".join(f"{kind}*.jsonl / *.parquet" for kind in kinds)
            raise DataError(f"no rows in {', '.join(map(str, sources))}", expected=names)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Document | Conversation:
        """Read the row at `index`, which must lie in 0..len-1; DataError and ChatError name its file and line."""
        part = bisect.bisect_right(self.ends, index)
        kind, path, rows = self.parts[part]
        line = index - (self.ends[part - 1] if part else 0)
        if kind == "documents":
            return Document.from_json(rows[line], where=f"{path} row {line + 1}")
        return Conversation.from_json(rows[line])

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Permute the indices: a pure function of (seed, epoch, length)."""
        return np.random.default_rng((seed, epoch)).permutation(len(self))
