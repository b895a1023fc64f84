"""Documents and conversations -> examples: what all objectives on text have in common."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from puna.data.augment.identifiers import fresh_identifiers
from puna.data.document import Document
from puna.data.encode import encode_example
from puna.data.packing import Batch, Example
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.training.objectives.losses import Rows


@dataclass(frozen=True)
class TextObjective:
    """Base of the objectives on documents and conversations; a subclass adds `losses`.

    Attributes:
        chat: Chat format and tokenizer of the model.
        reads_every_token: Whether every token is a target, or only the assistant's messages. Documents are read, and
            long examples are cut into pieces, only where every token is a target.
        has_fresh_identifiers: Whether identifiers in conversations get new random digits in every epoch.

    Example: see `NextToken`.
    """

    chat: ChatFormat
    reads_every_token: bool
    has_fresh_identifiers: bool

    needs_whole_examples = False
    bytes_per_logit = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("documents", "conversations") if self.reads_every_token else ("conversations",)

    @property
    def is_cut(self) -> bool:
        return self.reads_every_token

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        assert isinstance(row, Document | Conversation)
        if self.has_fresh_identifiers and isinstance(row, Conversation):
            row = fresh_identifiers(row, source)
        return [encode_example(row, self.chat, is_every_token=self.reads_every_token)]

    def draw(self, row: object, source: random.Random) -> Sequence[Example]:
        return self.encode(row, source)

    def num_counted(self, batch: Batch) -> int:
        return int(batch.trained_T.sum())


def trained_rows(batch: Batch) -> Rows:
    """Return the columns and targets of a batch at its M trained tokens, as `summed_over_tokens` takes them."""
    columns = {name: column[batch.trained_T] for name, column in batch.columns.items()}
    return columns | {"targets": batch.targets_T[batch.trained_T]}
