"""The interface of teachers: rows with token ids -> labels.

Shapes: N labelled tokens, K entries of a label.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from puna.data.document import Document
from puna.data.labels import LabelledRow
from puna.formats.chat.conversation import Conversation

# Smallest tail probability: float16 and rounding hide smaller values.
LEAST_TAIL = 1e-6


@dataclass(frozen=True)
class Item:
    """A row to label, with token ids and loss mask.

    Example:
        >>> Item(Document("Once."), ids=[1, 271, 13], mask=[False, True, True]).mask[0]
        False
    """

    row: Document | Conversation
    ids: Sequence[int]
    mask: Sequence[bool]


@dataclass(frozen=True)
class Labelled:
    """A row with labels, or the reason for leaving the row out.

    Example: `Teacher.label`.
    """

    row: Document | Conversation
    labels: LabelledRow | None
    reason: str = ""


class Teacher(Protocol):
    """A model for labelling rows independently, except for rounding within a batch.

    Example:
        >>> (labelled,) = teacher.label([item], advance=lambda count: None)
        >>> labelled.labels.top_ids_NK.shape
        (2, 64)
    """

    def label(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Labelled]:
        """Label all items in order; `advance` receives the number of newly finished items."""
        ...


class Piece(NamedTuple):
    """Consecutive tokens of an item for one forward pass.

    The last token is a target only. `wanted` holds the positions of labelled tokens.

    Example: `cut`.
    """

    item: int
    ids: Sequence[int]
    wanted: Sequence[int]


def cut(index: int, item: Item, context: int) -> Iterator[Piece]:
    """Cut an item into pieces of `context` tokens, as training does; neighbours share a token.

    Example:
        >>> [piece.ids for piece in cut(0, Item(row, [1, 2, 3, 4], [True] * 4), context=2)]
        [[1, 2, 3], [3, 4]]
    """
    for start in range(0, len(item.ids) - 1, context):
        ids = item.ids[start : start + context + 1]
        wanted = [at for at in range(1, len(ids)) if item.mask[start + at]]
        if wanted:
            yield Piece(index, ids, wanted)


@dataclass(frozen=True)
class Label:
    """Log-probabilities at a position: (token id, value) of likely tokens, and `chosen` of the text's own token.

    Example:
        >>> Label([(271, -0.1), (9, -2.5)], chosen=-2.5).entries[0]
        (271, -0.1)
    """

    entries: Sequence[tuple[int, float]]
    chosen: float


def labelled_row(ids: Sequence[int], mask: Sequence[bool], labels: Sequence[Label], *, top_k: int) -> LabelledRow:
    """Pack single labels into arrays; mass outside the at most `top_k` entries goes to the tail."""
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
