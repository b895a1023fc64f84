"""Questions of an evaluation and rows of training data -> the questions that are the whole prompt of a training row.

N-grams cannot detect a question of few words. The search for whole prompts finds a question if a training conversation
has the same prompt, word for word, before an answer of the assistant. Case and punctuation do not count.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from puna.data.overlap import Overlap, split_words

# Prompts of fewer words, such as greetings, occur everywhere.
MIN_PROMPT_WORDS = 4


@dataclass(frozen=True)
class WholePrompts:
    """Digests of prompts with question names; `found` maps a question's name to the place of the first matching row.

    Example:
        >>> prompts = WholePrompts.of({"shop q1": [{"role": "user", "content": "Where is my card?"}]})
        >>> prompts.look({"messages": [{"role": "user", "content": "where is my card"}, answer]}, "data row 1")
        >>> prompts.found
        {'shop q1': 'data row 1'}
    """

    names: dict[str, list[str]]
    found: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, questions: dict[str, Sequence[dict[str, Any]]]) -> "WholePrompts":
        """Index messages by digest; `questions` maps a question's name to the question's messages."""
        names: dict[str, list[str]] = {}
        for name, messages in questions.items():
            if key := _key(messages):
                names.setdefault(key, []).append(name)
        return cls(names)

    def sought(self) -> set[str]:
        """Return the names of all questions that are long enough for a search by whole prompt."""
        return {name for names in self.names.values() for name in names}

    def look(self, row: dict[str, Any], place: str) -> None:
        """Compare the prompt before every answer of a training row with the questions, if the row is a conversation."""
        messages = row.get("messages")
        if not isinstance(messages, list):
            return
        for index, message in enumerate(messages):
            if isinstance(message, dict) and message.get("role") == "assistant" and index:
                for name in self.names.get(_key(messages[:index]), ()):
                    self.found.setdefault(name, place)

    def overlaps(self, known: Iterable[str]) -> list[Overlap]:
        """Return the found questions as overlaps, without the questions in `known`."""
        seen = set(known)
        return [Overlap(name, 1.0, place) for name, place in self.found.items() if name not in seen]


def _key(messages: Sequence[dict[str, Any]]) -> str:
    """Return the digest of a prompt, or "" for a prompt of fewer than MIN_PROMPT_WORDS words."""
    said = [(str(message.get("role")), split_words(str(message.get("content") or ""))) for message in messages]
    if sum(len(words) for _, words in said) < MIN_PROMPT_WORDS:
        return ""
    return hashlib.sha256("\n".join(" ".join([role, *words]) for role, words in said).encode()).hexdigest()
