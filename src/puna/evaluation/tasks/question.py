"""Question and Grade as values. The grading rules are in grading/."""

from dataclasses import dataclass, field
from typing import Any

from puna.formats.chat.conversation import Conversation


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that waits for the assistant, with the expected answer.

    Attributes:
        id: Id of the question, unique in a task.
        conversation: Messages up to the open turn of the assistant.
        expected: Expected answer; the grading rule defines the fields.
        grade: Name of the grading rule in GRADES.
        group: Questions of one group (a world, a dialogue) are not independent; "" for an independent question.

    Example:
        >>> Question("7/2", Conversation((Message("user", "Price?"),)), {"contains": ["24.90"]}).grade
        'contains'
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
    """Result of grading an answer.

    Attributes:
        score: From 0 (wrong) to 1 (right).
        reason: Reason in words.
        parts: Sub-scores by name, 0 to 1.
        is_judged: Whether the rule read the content; a rule that passes any words judges nothing.

    Example:
        >>> Grade(0.0, "lacks '24.90'").score
        0.0
    """

    score: float
    reason: str
    parts: dict[str, float] = field(default_factory=dict)
    is_judged: bool = True

    def __post_init__(self) -> None:
        assert all(0 <= value <= 1 for value in (self.score, *self.parts.values()))
