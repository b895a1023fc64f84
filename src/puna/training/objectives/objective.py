"""What an objective says: how a row becomes an example, and what is minimized."""

import random
from collections.abc import Sequence
from typing import Protocol

import torch

from puna.data.packing import Batch, Example
from puna.model.llama import Llama


class Objective(Protocol):
    """One way to train. `kinds` names the shards it reads; `is_cut` lets long examples be cut into pieces."""

    @property
    def kinds(self) -> tuple[str, ...]: ...

    @property
    def is_cut(self) -> bool: ...

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        """Turn a row into the examples that it is, which stay in one batch; `source` is the only randomness."""
        ...

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        """Turn a row into examples to train on: what `encode` gives, or something made of it."""
        ...

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Return sums over a batch; "loss" is minimized, the others are shown beside it."""
        ...

    def num_counted(self, batch: Batch) -> int:
        """Return how many the sums are about (trained tokens, pairs): what a step divides them by."""
        ...
