"""Questions of an evaluation and rows of training data -> the questions that are the whole prompt of a training row.

N-grams cannot detect a question of few words. The search for whole prompts finds a question if a training conversation
has the same prompt, word for word, before an answer of the assistant. Case and punctuation do not count.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from puna.data.overlap.ngrams import Overlap, split_words
from puna.data.overlap.prompts import answer_places, dialogue_of, prompt_digest, said, system_texts

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

    names: dict[int | None, list[str]]
    found: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, questions: dict[str, Sequence[dict[str, Any]]]) -> "WholePrompts":
        """Index messages by digest; `questions` maps a question's name to the question's messages."""
        names: dict[int | None, list[str]] = {}
        for name, messages in questions.items():
            row = {"messages": messages}
            words = [split_words(said(message)) for message in dialogue_of(row)[0]]
            if sum(map(len, words)) + sum(len(split_words(text)) for text in system_texts(row)) >= MIN_PROMPT_WORDS:
                names.setdefault(prompt_digest(row, words), []).append(name)
        names.pop(None, None)
        return cls(names)

    def sought(self) -> set[str]:
        """Return the names of all questions that are long enough for a search by whole prompt."""
        return {name for names in self.names.values() for name in names}

    def look(self, row: dict[str, Any], location: str) -> None:
        """Compare the prompt before each answer of a training row, if the row is a conversation or a preference."""
        if not _is_dialogue(row):
            return
        messages, _ = dialogue_of(row)
        words = [split_words(said(message)) for message in messages]
        for index in answer_places(row, messages):
            for name in self.names.get(prompt_digest(row, words[:index]), ()):
                self.found.setdefault(name, location)

    def overlaps(self, known: Iterable[str]) -> list[Overlap]:
        """Return the found questions as overlaps, without the questions in `known`."""
        seen = set(known)
        return [Overlap(name, 1.0, location) for name, location in self.found.items() if name not in seen]


def _is_dialogue(row: dict[str, Any]) -> bool:
    """Tell whether messages stand in a row as Puna's shards spell them; raw files may hold anything."""
    parts = [row.get(name) for name in (("prompt", "chosen") if "chosen" in row else ("messages",))]
    return all(isinstance(part, list) and all(map(_is_message, part)) for part in parts)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))
