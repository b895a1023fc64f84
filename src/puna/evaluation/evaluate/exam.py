"""The questions and the grader of an evaluation -> the scores of null models on the questions.

Null models know nothing of the task. Null scores are the baseline of every score (tasks/null_models.py).
"""

from collections.abc import Sequence
from typing import Any

from puna.evaluation.evaluate.grading import Grader, Item, is_judged_by_rule
from puna.evaluation.tasks.null_models import NullModel, null_models
from puna.formats.chat.conversation import Message

# Largest number of answers per null model for a judge or reward model: enough to detect a judge that passes anything.
MAX_JUDGED = 40
# Largest number of questions in the search for the best of several alternative answers.
MAX_SEARCHED = 200


def null_scores(items: Sequence[Item], grader: Grader, *, seed: int) -> list[dict[str, Any]]:
    """Return the content of null_models.json: every null model with a score per question.

    An unjudged answer has the score None. Every question with a rule is graded by rule. A judge or reward model judges
    at most MAX_JUDGED answers per null model. A null model with several alternatives uses the alternative with the
    best mean score by rules.

    Example:
        >>> null_scores(items, Grader(), seed=0)[0]
        {'name': 'constant', 'description': 'gives every question the same answer, ...', 'scores': [0.0, 1.0, 0.0]}
    """
    by_rule = [index for index, item in enumerate(items) if is_judged_by_rule(item)]
    rest = sorted(set(range(len(items))) - set(by_rule)) if grader.judge else []
    chosen = by_rule + _spread(rest, MAX_JUDGED)
    models = null_models([item.question for item in items], seed=seed)
    return [
        {"name": model.name, "description": model.description, "scores": _scores(items, grader, answers, chosen)}
        for model in models
        for answers in [_best_by_rules(items, model, _spread(by_rule, MAX_SEARCHED))]
    ]


def _spread(indices: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the indices, evenly spread."""
    return list(indices[:: max(1, -(-len(indices) // most))])


def _best_by_rules(items: Sequence[Item], model: NullModel, by_rule: Sequence[int]) -> list[Message]:
    if len(model.alternatives) == 1:
        return model.alternatives[0]
    return max(model.alternatives, key=lambda answers: mean_score(_scores(items, Grader(), answers, by_rule)))


def _scores(
    items: Sequence[Item], grader: Grader, answers: Sequence[Message], chosen: Sequence[int]
) -> list[float | None]:
    """Grade the answers to the chosen questions; unchosen questions and unjudged answers have the score None."""
    scores: list[float | None] = [None] * len(items)
    judgements = grader.grade([items[index] for index in chosen], [answers[index] for index in chosen])
    for index, judgement in zip(chosen, judgements, strict=True):
        scores[index] = judgement.grade.score if judgement.grade.is_judged else None
    return scores


def mean_score(scores: Sequence[float | None]) -> float:
    """Return the mean of the known scores, or 0 without a known score.

    Example:
        >>> mean_score([1.0, None, 0.0])
        0.5
    """
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else 0.0


def describe_null_scores(nulls: Sequence[dict[str, Any]]) -> str:
    """Return a line for the terminal: the scores of all null models, the best first.

    Example:
        >>> describe_null_scores([{"name": "constant", "scores": [0.0, None, 1.0]}])
        'models that know nothing: constant 50.0%'
    """
    judged = [null for null in nulls if _is_judged(null)]
    if not judged:
        return "models that know nothing: not judged"
    means = sorted(((mean_score(null["scores"]), null["name"]) for null in judged), reverse=True)
    return "models that know nothing: " + ", ".join(f"{name} {mean:.1%}" for mean, name in means)


def null_table(nulls: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of report.md: description of a null model, and mean score in % or "not judged".

    Example:
        >>> null_table([{"description": "answers nothing", "scores": [0.0, None, 1.0]}])
        [['answers nothing', '50.0']]
    """
    return [
        [null["description"], f"{100 * mean_score(null['scores']):.1f}" if _is_judged(null) else "not judged"]
        for null in nulls
    ]


def _is_judged(null: dict[str, Any]) -> bool:
    return any(score is not None for score in null["scores"])
