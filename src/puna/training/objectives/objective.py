"""The interface of a training objective: rows -> examples, hidden states -> losses, requirements of the loss."""

import random
from collections.abc import Sequence
from typing import Protocol

import torch

from puna.data.packing import Batch, Example
from puna.model.llama import Llama


class Objective(Protocol):
    """One way to train a model.

    An objective declares requirements as properties: loop, reports and parallelism never inspect types.

    Example: see `NextToken`, the shortest objective.
    """

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of dataset shards that the objective reads, such as "conversations"."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether an example longer than the maximum length is cut into pieces instead of skipped."""
        ...

    @property
    def reads_every_token(self) -> bool:
        """Whether every token of a row is a target, or only the assistant's messages."""
        ...

    @property
    def needs_whole_examples(self) -> bool:
        """Whether one rank must hold all tokens of an example to compute the loss; rules out context parallelism."""
        ...

    @property
    def bytes_per_logit(self) -> int:
        """Memory that the loss holds for each logit of a chunk, in bytes, beside the logit and its gradient."""
        ...

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        """Turn a row into examples, which stay in one batch; all randomness comes from `source`."""
        ...

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        """Turn a row into the examples of one training step: those of `encode`, or a replacement such as a drill."""
        ...

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Return sums over a batch: "loss" is minimized, all other entries are metrics."""
        ...

    def num_counted(self, batch: Batch) -> int:
        """Return the divisor that makes means of the sums: the number of trained tokens, or of pairs."""
        ...
