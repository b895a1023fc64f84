"""The interface of a training objective: rows -> examples, hidden states -> losses, requirements of the loss."""

import random
from collections.abc import Sequence
from typing import Protocol

import torch

from puna.data.packing import Batch, Example
from puna.model.llama import Llama


class Objective(Protocol):
    """A training objective: encoding of rows, loss and metrics.

    Loop, reports and parallelism read the requirements of an objective from properties and never inspect the type.

    Example: see `NextToken`, the shortest objective.
    """

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of dataset shards to read, for example "conversations"."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether an example longer than the maximum length is cut into pieces instead of skipped."""
        ...

    @property
    def reads_every_token(self) -> bool:
        """Whether every token of a row is a target, instead of only the tokens of the assistant's messages."""
        ...

    @property
    def needs_whole_examples(self) -> bool:
        """Whether one rank must hold all tokens of an example to compute the loss; rules out context parallelism."""
        ...

    @property
    def bytes_per_logit(self) -> int:
        """Memory of the loss in bytes per logit of a chunk, excluding the logits and the gradients of the logits."""
        ...

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        """Turn a row into examples for the same batch; all randomness comes from `source`."""
        ...

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        """Turn a row into the examples of a training step: the result of `encode`, or a replacement such as a drill."""
        ...

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Return sums over a batch: "loss" is minimized, the remaining entries are metrics."""
        ...

    def num_counted(self, batch: Batch) -> int:
        """Return the divisor for the mean of a sum: the number of trained tokens, or of pairs."""
        ...
