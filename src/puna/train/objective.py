"""What an objective says: how a row becomes an example, and what is minimized."""

import random
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from puna.chat.conversation import Conversation
from puna.chat.format import ChatFormat, Encoded
from puna.data.dataset import Document
from puna.data.identifiers import fresh_identifiers
from puna.data.packing import Batch


class Objective(Protocol):
    """One way to train. `kinds` names the shards it reads; `is_cut` lets long examples be cut into pieces."""

    @property
    def kinds(self) -> tuple[str, ...]: ...

    @property
    def is_cut(self) -> bool: ...

    def encode(self, row: object, source: random.Random) -> Encoded:
        """Turn a row into ids and the mask of what is trained; `source` is the only randomness."""
        ...

    def draw(self, row: object, source: random.Random) -> Encoded:
        """Turn a row into an example to train on: what `encode` gives, or something made of it."""
        ...

    def losses(self, logits_MV: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Return sums over the M trained tokens; "loss" is minimized, the others are shown beside it."""
        ...


@dataclass(frozen=True)
class NextToken:
    """Cross entropy of the next token: on every token of the text, or on what the assistant says."""

    chat: ChatFormat
    is_every_token: bool
    has_fresh_identifiers: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("documents", "conversations") if self.is_every_token else ("conversations",)

    @property
    def is_cut(self) -> bool:
        return self.is_every_token

    def encode(self, row: object, source: random.Random) -> Encoded:
        if isinstance(row, Document):
            ids = self.chat.document(row.text)
            return Encoded(ids, [True] * len(ids))
        assert isinstance(row, Conversation)
        encoded = self.chat.encode(fresh_identifiers(row, source) if self.has_fresh_identifiers else row)
        return Encoded(encoded.ids, [True] * len(encoded.ids)) if self.is_every_token else encoded

    def draw(self, row: object, source: random.Random) -> Encoded:
        return self.encode(row, source)

    def losses(self, logits_MV: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": F.cross_entropy(logits_MV, batch.targets_T[batch.trained_T], reduction="sum")}
