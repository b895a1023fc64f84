"""A question and the grade of its answer, as values. How answers are judged: grading/."""

from dataclasses import dataclass, field
from typing import Any

from puna.formats.chat.conversation import Conversation


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that waits for the assistant, and what is expected of it.

    `grade` names a function in GRADES, which says what `expected` must hold. Questions of one `group` (a world, a
    dialogue) are not independent; without a group a question stands alone.
    """

    id: str
    conversation: Conversation
    expected: dict[str, Any]
    grade: str = "contains"
    group: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the row of a questions file."""
        row = {"id": self.id, "group": self.group, "conversation": self.conversation.to_json()}
        return row | {"expected": self.expected, "grade": self.grade}


@dataclass(frozen=True, slots=True)
class Grade:
    """A score from 0 to 1 with its reason; `parts` are sub-scores that are reported beside it.

    `is_judged` tells whether the content of the answer was looked at. A grade that any words pass judges nothing.
    """

    score: float
    reason: str
    parts: dict[str, float] = field(default_factory=dict)
    is_judged: bool = True

    def __post_init__(self) -> None:
        assert all(0 <= value <= 1 for value in (self.score, *self.parts.values()))
