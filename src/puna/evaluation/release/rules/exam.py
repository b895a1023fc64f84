"""Rule `exam`: the questions tell the candidate from models that know nothing of the task.

Every evaluation also grades the answers of null models (tasks/null_models.py). If a null model comes within the margin
of the candidate, a GO would prove nothing about the candidate.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from puna.evaluation.release.paired_comparison import POINTS, Outcome, PairedComparison, compare_paired
from puna.evaluation.release.rules.verdict import Verdict
from puna.evaluation.scores import EvaluatedModel

HINT = "Ask more questions whose right answers differ, and judge what the answers say"
# For null models with scores below the margin: the exam is hard enough, and the candidate is weak.
HINT_FOR_WEAK_MODEL = "The model is hardly better than one that knows nothing: train it further, or ask more questions"


class NullResult(NamedTuple):
    """Score of a null model beside the candidate's score, 0 to 1, on the questions judged for both models.

    Example:
        >>> NullResult(0.0, 1.0, compare_paired(mine, constant, suite="task", role="null", threshold=0.05)).is_beaten
        True
    """

    score: float
    candidate_score: float
    comparison: PairedComparison

    @property
    def is_beaten(self) -> bool:
        """Whether the candidate's lead is shown to exceed the margin."""
        return self.comparison.outcome is Outcome.MET


Exam = Sequence[NullResult]


def examine(
    candidate: EvaluatedModel, nulls: Sequence[EvaluatedModel], *, suite: str, margin: float
) -> list[NullResult]:
    """Pair the candidate's answers with every null model's answers, on the questions judged for both models.

    The result is empty if every judgement of the candidate's answers is a person's: people notice an answer without
    knowledge, and review no null models.

    Args:
        candidate: Graded answers of the model to release.
        nulls: Graded answers of the null models to the same questions.
        suite: Name of the suite, "task" or "general".
        margin: Required lead over every null model, 0 to 1; the whole interval must lie above the margin.

    Example:
        >>> [result.is_beaten for result in examine(mine, [constant, empty], suite="task", margin=0.05)]
        [True, True]
    """
    if candidate.judged and all(row.get("judged_by") == "person" for row in candidate.judged):
        return []
    results: list[NullResult] = []
    for null in nulls:
        comparison = compare_paired(candidate, null, suite=suite, role="null", threshold=margin)
        paired = [score for question, score in null.scores.items() if question in candidate.scores]
        score = sum(paired) / len(paired) if paired else 0.0
        results.append(NullResult(score, score + comparison.difference.mean, comparison))
    return results


def judge_exam(exams: Mapping[str, Exam | None]) -> Verdict:
    """Require the candidate to beat every null model by the margin, on every suite.

    Args:
        exams: Results by suite, named as in a sentence ("task"); None for an evaluation without null models.

    Example:
        >>> judge_exam({"task": examine(mine, [constant, empty], suite="task", margin=0.05)}).remark
        '100.0 points better than any model that knows nothing'
    """
    reasons = [reason for suite, exam in exams.items() for reason in _reasons(suite, exam)]
    results = [result for exam in exams.values() for result in exam or ()]
    if reasons or not exams:
        best = max((result.score for result in results if not result.is_beaten), default=1.0)
        margin = max((result.comparison.threshold or 0.0 for result in results), default=0.0)
        hint = HINT if best >= margin else HINT_FOR_WEAK_MODEL
        return Verdict("exam", reasons, hint=hint if reasons else "")
    if not results:
        return Verdict("exam", [], "people judged every answer")
    lead = min(result.comparison.difference.mean for result in results)
    return Verdict("exam", [], f"{POINTS * lead:.1f} points better than any model that knows nothing")


def _reasons(suite: str, exam: Exam | None) -> Iterator[str]:
    if exam is None:
        yield f"exam-too-weak: the evaluation of the {suite} has no null models; evaluate again with this version"
        return
    if exam and not any(result.comparison.num_questions for result in exam):
        yield f"exam-too-weak: no answer on the {suite} was judged both of this model and of models that know nothing"
        return
    passed = sorted((result for result in exam if not result.is_beaten), key=lambda each: each.comparison.difference)
    if passed:
        best, margin = passed[0], POINTS * (passed[0].comparison.threshold or 0)
        others = f" (so do {len(passed) - 1} more)" if len(passed) > 1 else ""
        yield (
            f"exam-too-weak: on the {suite} a model that {best.comparison.name} scores {POINTS * best.score:.1f} %, "
            f"this one {POINTS * best.candidate_score:.1f} %, not shown to be {margin:.0f} points more{others}"
        )
