"""Cross entropy of the next token: what pretraining and fine-tuning minimize.

Shapes: T tokens of a batch, M trained tokens among them, C of these at once, D model width, V vocabulary.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from puna.data.augment.identifiers import fresh_identifiers
from puna.data.document import Document
from puna.data.encode import encode_example
from puna.data.packing import Batch, Example
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.model.llama import Llama
from puna.training.objectives.entropy import entropy_sum
from puna.training.objectives.losses import Rows, summed_over_tokens


@dataclass(frozen=True)
class NextToken:
    """On every token of the text, or on what the assistant says."""

    chat: ChatFormat
    is_every_token: bool
    has_fresh_identifiers: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("documents", "conversations") if self.is_every_token else ("conversations",)

    @property
    def is_cut(self) -> bool:
        return self.is_every_token

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        assert isinstance(row, Document | Conversation)
        if self.has_fresh_identifiers and isinstance(row, Conversation):
            row = fresh_identifiers(row, source)
        return [encode_example(row, self.chat, is_every_token=self.is_every_token)]

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        return self.encode(row, source)

    def num_counted(self, batch: Batch) -> int:
        return int(batch.trained_T.sum())

    def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return summed_over_tokens(model, hidden_TD[batch.trained_T], self.rows(batch), self.terms)

    def rows(self, batch: Batch) -> Rows:
        """Return what `terms` needs to know of each of the M trained tokens."""
        return {name: column[batch.trained_T] for name, column in batch.columns.items()} | {
            "targets": batch.targets_T[batch.trained_T]
        }

    def terms(self, logits_CV: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
        """Return the sums over some trained tokens, with the rows of these."""
        loss = F.cross_entropy(logits_CV, rows["targets"], reduction="sum")
        return {"loss": loss, "entropy": entropy_sum(logits_CV)}
