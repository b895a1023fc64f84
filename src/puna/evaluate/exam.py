"""The questions of an evaluation and the way their answers are graded -> the scores of null models on them.

A score means something only beside what a model that knows nothing would get (tasks/null_models.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

from puna.chat.conversation import Message
from puna.tasks.null_models import null_models
from puna.tasks.question import Grade, Question

# Grades the answer to one of the questions, by its index.
GradeAnswer = Callable[[int, Message], Grade]


def null_scores(questions: Sequence[Question], grade: GradeAnswer, *, seed: int) -> list[dict[str, Any]]:
    """Return what null_models.json holds: each null model with its score on every question.

    The score is None where the content of the answer was not judged. Of several alternative answers the list with the
    highest mean stands for the model.

    Example:
        >>> null_scores(questions, lambda index, answer: task.grade(questions[index], answer), seed=0)[0]
        {'name': 'constant', 'description': 'answers every question alike, ...', 'scores': [0.0, 1.0, 0.0]}
    """
    rows: list[dict[str, Any]] = []
    for model in null_models(questions, seed=seed):
        graded = [[_score(grade(index, answer)) for index, answer in enumerate(each)] for each in model.alternatives]
        best = max(graded, key=mean_score)
        rows.append({"name": model.name, "description": model.description, "scores": best})
    return rows


def mean_score(scores: Sequence[float | None]) -> float:
    """Return the mean of the scores that are known, 0 where none is."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else 0.0


def _score(grade: Grade) -> float | None:
    return grade.score if grade.is_judged else None
