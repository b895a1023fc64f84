"""What a labelling teacher is given and gives back.

Shapes: N labelled tokens, K entries of a label.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from puna.data.document import Document
from puna.data.labels import LabelledRow
from puna.formats.chat.conversation import Conversation

# A mass that float16 and rounding leave unknown: what is said to be none is at most this much.
LEAST_TAIL = 1e-6


@dataclass(frozen=True)
class Item:
    """A row to be labelled, with its tokens and which of them are trained."""

    row: Document | Conversation
    ids: Sequence[int]
    mask: Sequence[bool]


@dataclass(frozen=True)
class Labelled:
    """A row with its labels, or without them and the reason why it is left out."""

    row: Document | Conversation
    labels: LabelledRow | None
    reason: str = ""


class Teacher(Protocol):
    """Labels rows: each for itself, but for rounding, which may depend on what is read beside it."""

    def label(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Labelled]:
        """Return what became of each item, in their order; `advance` is told how many more are done."""
        ...


class Piece(NamedTuple):
    """Tokens of an item that are read together, the last of them only foreseen; at `wanted` stand labelled tokens."""

    item: int
    ids: Sequence[int]
    wanted: Sequence[int]


def cut(index: int, item: Item, context: int) -> Iterator[Piece]:
    """Cut an item as training would; the first token of a piece is foreseen by the piece before it."""
    for start in range(0, len(item.ids) - 1, context):
        ids = item.ids[start : start + context + 1]
        wanted = [at for at in range(1, len(ids)) if item.mask[start + at]]
        if wanted:
            yield Piece(index, ids, wanted)


@dataclass(frozen=True)
class Label:
    """What a teacher says of one token, most likely first; `chosen` is about the token itself."""

    entries: Sequence[tuple[int, float]]
    chosen: float


def labelled_row(ids: Sequence[int], mask: Sequence[bool], labels: Sequence[Label], *, top_k: int) -> LabelledRow:
    """Pack labels of single tokens; one with fewer than `top_k` entries leaves the rest of the mass to the tail."""
    top_ids_NK = np.zeros((len(labels), top_k), np.int32)
    top_NK = np.full((len(labels), top_k), -np.inf, np.float32)
    for at, label in enumerate(labels):
        entries = sorted(label.entries, key=lambda entry: -entry[1])[:top_k]
        top_ids_NK[at] = entries[0][0]
        top_ids_NK[at, : len(entries)] = [token for token, _ in entries]
        top_NK[at, : len(entries)] = [logprob for _, logprob in entries]
    tail_N = np.log(np.maximum(1 - np.exp(top_NK.astype(np.float64)).sum(-1), LEAST_TAIL))
    chosen_N = np.array([label.chosen for label in labels])
    values = (values.astype(np.float16) for values in (top_NK, tail_N, chosen_N))
    return LabelledRow(np.asarray(ids, np.int32), np.asarray(mask, bool), top_ids_NK, *values)
