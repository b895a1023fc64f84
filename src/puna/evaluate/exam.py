"""The questions of an evaluation and the way their answers are graded -> the scores of null models on them.

A score means something only beside what a model that knows nothing would get (tasks/null_models.py).
"""

from collections.abc import Sequence
from typing import Any

from puna.chat.conversation import Message
from puna.evaluate.grading import Grader, Item
from puna.tasks.null_models import null_models


def null_scores(items: Sequence[Item], grader: Grader, *, seed: int) -> list[dict[str, Any]]:
    """Return what null_models.json holds: each null model with its score on every question.

    The score is None where the content of the answer was not judged. Of several alternative answers the list with the
    highest mean stands for the model.

    Example:
        >>> null_scores(items, Grader(), seed=0)[0]
        {'name': 'constant', 'description': 'answers every question alike, ...', 'scores': [0.0, 1.0, 0.0]}
    """

    def scores(answers: Sequence[Message]) -> list[float | None]:
        grades = [judgement.grade for judgement in grader.grade(items, answers)]
        return [grade.score if grade.is_judged else None for grade in grades]

    models = null_models([item.question for item in items], seed=seed)
    return [
        {
            "name": model.name,
            "description": model.description,
            "scores": max((scores(answers) for answers in model.alternatives), key=mean_score),
        }
        for model in models
    ]


def mean_score(scores: Sequence[float | None]) -> float:
    """Return the mean of the scores that are known, 0 where none is."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else 0.0


def describe_null_scores(nulls: Sequence[dict[str, Any]]) -> str:
    """Return one line for the terminal: the scores of all null models, the best first."""
    means = sorted(((mean_score(null["scores"]), null["name"]) for null in nulls), reverse=True)
    return "models that know nothing: " + ", ".join(f"{name} {mean:.1%}" for mean, name in means)


def null_table(nulls: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of report.md: what each null model does, and its score in %."""
    return [[null["description"], f"{100 * mean_score(null['scores']):.1f}"] for null in nulls]
