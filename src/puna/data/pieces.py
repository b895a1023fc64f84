"""Held-out documents and conversations -> pieces of token ids, to compare models on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.chat.conversation import Conversation
from puna.chat.format import ChatFormat
from puna.data.dataset import Dataset
from puna.data.packing import Example
from puna.tokenizer import Tokenizer


def cut_pieces(paths: Sequence[Path], tokenizer: Tokenizer, *, num_tokens: int, longest: int) -> Iterator[list[int]]:
    """Cut rows from all over the data into pieces of at most `longest`, until there are `num_tokens` or it ends."""
    for example in cut_examples(paths, tokenizer, num_tokens=num_tokens, longest=longest):
        yield list(example.ids)


def cut_examples(paths: Sequence[Path], tokenizer: Tokenizer, *, num_tokens: int, longest: int) -> Iterator[Example]:
    """Do the same with a mask: of a document every token counts, of a conversation what the assistant says."""
    chat, dataset = ChatFormat(tokenizer), Dataset(paths)
    left = num_tokens
    for index in dataset.order(0, 0):
        row = dataset[int(index)]
        if isinstance(row, Conversation):
            ids, mask = chat.encode(row)
        else:
            ids = chat.document(row.text)
            mask = [True] * len(ids)
        for start in range(0, len(ids), longest):
            if left <= 0:
                return
            part = slice(start, start + min(longest, left))
            yield Example(ids[part], mask[part])
            left -= min(longest, left, len(ids) - start)
