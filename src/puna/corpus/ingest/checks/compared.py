"""A row of a dataset -> the digests and words by which rows are compared. Judges no row."""

import json
from dataclasses import dataclass
from typing import Any

from puna.data.overlap.ngrams import row_text, split_words
from puna.data.overlap.prompts import answer_places, dialogue_of, digest, prompt_digest, said
from puna.formats.chat.conversation import is_blank

# Fields that describe a row and teach nothing: rows that differ in these alone are the same row.
DESCRIPTIVE = {"id", "metadata", "source", "licence", "language"}


@dataclass(frozen=True, slots=True)
class Compared:
    """The digests of one row.

    `whole` covers every field that is trained on. `prompt` covers the words before the last answer, the system message
    included, and is None where nobody asks. `answers` has one digest for each answer in words. `only_answer` is the
    digest of the answer where a row has no other answer and no tool call. `words` leave the system message out.

    Example:
        >>> compare_row({"text": "Open at nine"}).words
        ['open', 'at', 'nine']
    """

    whole: int
    prompt: int | None
    answers: tuple[int, ...]
    only_answer: int | None
    has_empty_answer: bool
    words: list[str]


def compare_row(row: dict[str, Any]) -> Compared:
    """Compute the digests of a row as it stands in a shard.

    Example:
        compare_row({"messages": [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Yes."}]})
    """
    taught = {name: value for name, value in row.items() if name not in DESCRIPTIVE}
    whole = digest(json.dumps(taught, sort_keys=True))
    messages, num_prompt = dialogue_of(row)
    if not messages:
        return Compared(whole, None, (), None, False, split_words(row_text(row)))
    words = [split_words(said(message)) for message in messages]
    answers = [index for index in answer_places(row, messages) if not messages[index].get("tool_calls")]
    spoken = [index for index in answers if not is_blank(messages[index]["content"])]
    digests = tuple(digest(" ".join(words[index]) or messages[index]["content"].strip()) for index in spoken)
    is_one = len(set(digests)) == 1 and len(digests) == len(answer_places(row, messages))
    rejected = [split_words(said(message)) for message in row.get("rejected", [])]
    return Compared(
        whole,
        prompt_digest(row, words[:num_prompt]),
        digests,
        digests[0] if is_one else None,
        len(spoken) < len(answers),
        [word for part in (*words, *rejected) for word in part],
    )
