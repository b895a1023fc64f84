"""Held-out documents and conversations -> pieces of token ids, to compare models on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.chat.conversation import Conversation
from puna.chat.format import ChatFormat
from puna.data.dataset import Dataset
from puna.data.document import Document
from puna.tokenizer import Tokenizer


def cut_pieces(paths: Sequence[Path], tokenizer: Tokenizer, *, num_tokens: int, longest: int) -> Iterator[list[int]]:
    """Cut rows from all over the data into pieces of at most `longest`, until there are `num_tokens` or it ends."""
    chat, dataset = ChatFormat(tokenizer), Dataset(paths)
    left = num_tokens
    for index in dataset.order(0, 0):
        row = dataset[int(index)]
        assert isinstance(row, Document | Conversation)
        ids = chat.document(row.text) if isinstance(row, Document) else chat.encode(row).ids
        for start in range(0, len(ids), longest):
            if left <= 0:
                return
            yield ids[start : start + min(longest, left)]
            left -= min(longest, left, len(ids) - start)
