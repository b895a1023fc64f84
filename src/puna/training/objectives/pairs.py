"""Preferences -> examples, best answer first, and pairs of a batch's examples: what dpo and reward have in common.

Shapes: N examples of a batch, P pairs of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from puna.data.packing import Batch
from puna.formats.chat.format import ChatFormat

# A column that says of each token of an example how many of the examples after it are worse.
OUTRANKED = "outranked"


@dataclass(frozen=True)
class Pairs:
    """Examples of answers to one prompt stay in one batch. `strengths` are those that make a pair worth learning."""

    chat: ChatFormat
    strengths: frozenset[str]

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("preferences",)

    @property
    def is_cut(self) -> bool:
        return False

    def num_counted(self, batch: Batch) -> int:
        return int(first_of_each(batch, OUTRANKED).sum())


def places(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (better_P, worse_P): the places among the batch's examples of the answers of each pair."""
    counts = first_of_each(batch, OUTRANKED).tolist()
    pairs = [(place, place + after) for place, count in enumerate(counts) for after in range(1, count + 1)]
    better_P, worse_P = torch.tensor(pairs, dtype=torch.long, device=batch.tokens_T.device).reshape(-1, 2).T
    return better_P, worse_P


def first_of_each(batch: Batch, name: str) -> torch.Tensor:
    """Return a column's value at the first token of each example, for what is the same at all of its tokens."""
    starts = [0, *accumulate(batch.lengths)][:-1]
    return batch.columns[name][starts]


def constant(ids: Sequence[int], value: int | float) -> torch.Tensor:
    """Return a column that says the same of each token."""
    return torch.full((len(ids),), value)
