"""The rows of a dataset -> the share of repeated rows, and the number of equal and of empty answers."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from puna.data.dataset import Dataset, Document
from puna.data.labels import LabelledRow
from puna.data.overlap.ngrams import split_words
from puna.data.preference import Preference
from puna.formats.chat.conversation import Conversation, Message, is_blank
from puna.pipeline.errors import PunaError

MAX_COMPARED = 5_000
MAX_SHOWN = 80


def describe_rows(dataset: Dataset) -> dict[str, Any]:
    """Return the share of repeated rows, and counts of the answers: in words, most frequent, empty.

    Rows repeat by messages, text or token ids; preferences by prompt and answers. At most 5,000 rows are read.
    """
    seen: set[bytes] = set()
    spoken: Counter[str] = Counter()
    shown: dict[str, str] = {}
    num_empty = 0
    indices = range(0, len(dataset), -(-len(dataset) // MAX_COMPARED))
    for index in indices:
        with contextlib.suppress(PunaError):  # training itself refuses an unreadable row
            row = dataset[index]
            seen.add(hashlib.sha256(_said(row).encode("utf-8", "replace")).digest())
            for message in _answers(row):
                text = "" if is_blank(message.content) else message.content.strip()
                if text:
                    key = " ".join(split_words(text)) or text
                    spoken[key] += 1
                    shown.setdefault(key, text)
                num_empty += not text
    key, count = spoken.most_common(1)[0] if spoken else ("", 0)
    answers = {"num_spoken": spoken.total(), "num_equal": count, "num_empty": num_empty}
    return {
        "copies_share": 1 - len(seen) / len(indices),
        "answers": {**answers, "most_frequent": shown.get(key, "")[:MAX_SHOWN]},
    }


def _answers(row: object) -> Iterator[Message]:
    """Yield the assistant messages without a tool call that a model learns to write."""
    messages = row.messages if isinstance(row, Conversation) else row.chosen if isinstance(row, Preference) else ()
    yield from (message for message in messages if message.is_learned and not message.tool_calls)


def _said(row: object) -> str:
    if isinstance(row, Document):
        return row.text
    if isinstance(row, LabelledRow):
        return row.ids_T.tobytes().hex()
    if isinstance(row, Preference):
        return repr([_spoken(each) for each in (row.prompt.messages, row.chosen, row.rejected, row.edited)])
    return repr(_spoken(row.messages) if isinstance(row, Conversation) else row)


def _spoken(messages: Sequence[Message]) -> list[tuple[str, int]]:
    return [(message.rendered, message.weight) for message in messages]
