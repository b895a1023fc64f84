"""A row of a dataset -> digests and words for the comparison with other rows."""

import json
from dataclasses import dataclass
from typing import Any

from puna.data.overlap.ngrams import row_text, split_words
from puna.data.overlap.prompts import answer_places, dialogue_of, digest, prompt_digest, said
from puna.formats.chat.conversation import is_blank

# Descriptive fields: rows that differ only here are duplicates.
DESCRIPTIVE = {"id", "metadata", "source", "licence", "language"}


@dataclass(frozen=True, slots=True)
class RowDigests:
    """Digests of a row.

    Attributes:
        whole: Digest of every trained field.
        prompt: Digest of system message and dialogue before the last answer; None without a user message.
        answers: Digests of the answers in words.
        only_answer: Digest of a single answer; None for several answers or tool calls.
        words: Words of the row, without the system message.

    Example:
        >>> row_digests({"text": "Open at nine"}).words
        ['open', 'at', 'nine']
    """

    whole: int
    prompt: int | None
    answers: tuple[int, ...]
    only_answer: int | None
    has_empty_answer: bool
    words: list[str]


def row_digests(row: dict[str, Any]) -> RowDigests:
    """Compute the digests of a row of a shard.

    Example:
        row_digests({"messages": [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Yes."}]})
    """
    taught = {name: value for name, value in row.items() if name not in DESCRIPTIVE}
    whole = digest(json.dumps(taught, sort_keys=True))
    messages, num_prompt = dialogue_of(row)
    if not messages:
        return RowDigests(whole, None, (), None, False, split_words(row_text(row)))
    words = [split_words(said(message)) for message in messages]
    answers = [index for index in answer_places(row, messages) if not messages[index].get("tool_calls")]
    spoken = [index for index in answers if not is_blank(messages[index]["content"])]
    digests = tuple(digest(" ".join(words[index]) or messages[index]["content"].strip()) for index in spoken)
    is_one = len(set(digests)) == 1 and len(digests) == len(answer_places(row, messages))
    rejected = [split_words(said(message)) for message in row.get("rejected", [])]
    return RowDigests(
        whole,
        prompt_digest(row, words[:num_prompt]),
        digests,
        digests[0] if is_one else None,
        len(spoken) < len(answers),
        [word for part in (*words, *rejected) for word in part],
    )
