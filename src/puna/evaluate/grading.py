"""Questions and answers -> judgements: by the rule of each question, and by whatever else an evaluation is given.

`Grader.grade` judges any message for any question, also one that no checkpoint wrote.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from puna.chat.conversation import Message
from puna.tasks.grading.similarity import chrf, reference_of
from puna.tasks.question import Grade, Question
from puna.tasks.task import Task

JudgedBy = Literal["rule", "judge", "reward", "person", ""]


class Item(NamedTuple):
    """A question and the task that it belongs to."""

    task: Task
    question: Question


class Judgement(NamedTuple):
    """The grade of an answer and who judged its content, "" where nobody did; `evidence` is a judge's quote."""

    grade: Grade
    judged_by: JudgedBy = "rule"
    evidence: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a row of conversations-NAME.jsonl."""
        evidence = {"evidence": self.evidence} if self.evidence else {}
        return {
            "score": self.grade.score,
            "parts": self.grade.parts,
            "reason": self.grade.reason,
            "judged": self.grade.is_judged,
            "judged_by": self.judged_by,
            **evidence,
        }


@dataclass(frozen=True)
class Grader:
    """Judges answers with all that an evaluation is configured with, except human labels.

    Example:
        >>> Grader().grade([Item(task, question)], [Message("assistant", "It costs 5.")])[0].grade.score
        1.0
    """

    def grade(self, items: Sequence[Item], messages: Sequence[Message]) -> list[Judgement]:
        """Judge one message for each item, in the order given."""
        judgements: list[Judgement] = []
        for item, message in zip(items, messages, strict=True):
            grade = item.task.grade(item.question, message)
            judgements.append(Judgement(grade, "rule" if grade.is_judged else ""))
        return judgements


def similarity(question: Question, message: Message) -> float | None:
    """Return chrF of an answer to the reference, None where a question has no reference."""
    reference = reference_of(question)
    return round(chrf(reference, message.content), 4) if reference else None
