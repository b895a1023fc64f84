"""A row of a dataset -> the dialogue, and digests of the prompts before the answers.

Equal digests mean equal words, regardless of case and punctuation.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from puna.data.overlap.ngrams import row_text, split_words

Message = dict[str, Any]


def dialogue_of(row: dict[str, Any]) -> tuple[list[Message], int]:
    """Return the messages without the system message, and the number of messages before the last answer.

    The chosen answer of a preference counts as the last answer. A document has no messages.

    Example:
        >>> messages = [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Yes."}]
        >>> dialogue_of({"messages": messages})[1]
        1
    """
    if "chosen" in row:
        prompt = _without_system(row["prompt"])
        return [*prompt, *row["chosen"]], len(prompt)
    messages = _without_system(row.get("messages", []))
    answer_indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return messages, answer_indices[-1] if answer_indices else 0


def answer_places(row: dict[str, Any], messages: list[Message]) -> list[int]:
    """Return the indices of the assistant messages with a loss.

    Example:
        >>> messages = [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Yes."}]
        >>> answer_places({"messages": messages}, messages)
        [1]
    """
    first = len(messages) - len(row["chosen"]) if "chosen" in row else 0
    learned = (index for index in range(first, len(messages)) if messages[index]["role"] == "assistant")
    return [index for index in learned if messages[index].get("weight", 1)]


def said(message: Message) -> str:
    """Return the text of a message with the names and arguments of its tool calls.

    Example:
        >>> said({"role": "assistant", "content": "Yes."})
        'Yes.'
    """
    return row_text({name: message[name] for name in ("content", "tool_calls") if name in message})


def prompt_digest(row: dict[str, Any], words: Sequence[Sequence[str]]) -> int | None:
    """Return the digest of the words before an answer, behind the row's system message; None for no words.

    Example:
        >>> prompt_digest({"messages": []}, [[]]) is None
        True
    """
    if not any(words):
        return None
    system = [split_words(text) for text in system_texts(row)]
    return digest("\n".join(" ".join(part) for part in (*system, *words)))


def system_texts(row: dict[str, Any]) -> list[str]:
    """Return the system messages of a row.

    Example:
        >>> system_texts({"messages": [{"role": "system", "content": "You help."}]})
        ['You help.']
    """
    messages = row.get("messages") or row.get("prompt") or []
    return [message["content"] for message in messages if message["role"] == "system"]


def digest(text: str) -> int:
    """Return 64 bits of a text's BLAKE2b hash: equal in every run, unlike hash().

    Example:
        >>> digest("open") == digest("open"), digest("open") == digest("Open")
        (True, False)
    """
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


def _without_system(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message["role"] != "system"]
