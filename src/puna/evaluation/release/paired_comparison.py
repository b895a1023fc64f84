"""Answers of a candidate and a compared model to the same questions -> difference of the scores against a threshold.

The candidate must beat the compared model by a positive threshold, or may fall behind by a negative threshold
(a margin). The threshold is met if the whole 95 % interval lies above: chance passes a wrong candidate in 2.5 of 100
cases. A GO needs all thresholds at once (intersection-union test). No correction for multiple tests is
needed, since the error of the whole is at most the error of a single test (Berger, 1982, Technometrics 24, 295-300).
"""

import math
from dataclasses import dataclass
from enum import Enum

from puna.evaluation.scores import EvaluatedModel
from puna.evaluation.tasks.intervals import Interval, difference_interval

POINTS = 100  # reports give scores in points of 100


class Outcome(Enum):
    """Result of a comparison, in words for reports and release.json.

    Example:
        >>> Outcome.MET.value
        'met'
    """

    MET = "met"
    MISSED = "not met"
    UNDECIDED = "too few questions to tell"
    SHOWN = "not demanded"


@dataclass(frozen=True)
class PairedComparison:
    """Paired difference between candidate and compared model on a suite.

    Attributes:
        suite: "task" or "general".
        role: Role of the compared model, for example "base" or "teacher".
        name: Name of the compared model.
        difference: Candidate's mean score minus the compared model's mean score, with the 95 % interval.
        threshold: Lower bound for the whole interval; None for a comparison without a threshold.
        num_questions: Number of questions judged for candidate and compared model.
        num_groups: Number of groups of the questions.
        better: Number of questions with a higher score of the candidate.
        worse: Number of questions with a lower score of the candidate.
        label: The compared model in a sentence ("the teacher").

    Example:
        >>> compare_paired(mine, base, suite="task", role="base", threshold=0.0).outcome
        <Outcome.MET: 'met'>
    """

    suite: str
    role: str
    name: str
    difference: Interval
    threshold: float | None
    num_questions: int
    num_groups: int
    better: int
    worse: int
    label: str = ""

    @property
    def outcome(self) -> Outcome:
        """Whether the difference meets the threshold; undecided if more questions could still change the result."""
        if self.threshold is None:
            return Outcome.SHOWN
        if self.difference.low > self.threshold:
            return Outcome.MET
        # An interval wider than the margin: too few questions even for a model as good as the other model.
        is_blind = self.threshold < 0 and self._half_width >= -self.threshold
        is_open = self.difference.high > self.threshold and (self.difference.mean > self.threshold or is_blind)
        return Outcome.UNDECIDED if is_open else Outcome.MISSED

    @property
    def num_needed(self) -> int | None:
        """Estimated number of similar questions for a decision; None if more questions would hardly help.

        The estimate assumes the observed difference if that exceeds the threshold, otherwise no difference.
        """
        if self.outcome is not Outcome.UNDECIDED or self.threshold is None or not self.num_questions:
            return None
        mean = self.difference.mean
        room = mean - self.threshold if mean > self.threshold else -self.threshold
        needed = max(self.num_questions + 1, self.num_questions * (self._half_width / room) ** 2)
        step = 10 ** max(0, math.floor(math.log10(needed)) - 1)
        return math.ceil(needed / step) * step

    @property
    def _half_width(self) -> float:
        return (self.difference.high - self.difference.low) / 2


def compare_paired(
    candidate: EvaluatedModel, other: EvaluatedModel, *, suite: str, role: str, threshold: float | None, label: str = ""
) -> PairedComparison:
    """Pair the answers of two models of an evaluation by question, on the questions judged for the two models."""
    questions = [question for question in candidate.scores if question in other.scores]
    ours = [candidate.scores[question] for question in questions]
    theirs = [other.scores[question] for question in questions]
    groups = [candidate.groups[question] for question in questions]
    difference = difference_interval(ours, theirs, groups)
    better = sum(a > b for a, b in zip(ours, theirs, strict=True))
    worse = sum(a < b for a, b in zip(ours, theirs, strict=True))
    return PairedComparison(
        suite, role, other.name, difference, threshold, len(ours), len(set(groups)), better, worse, label
    )


def explain(comparison: PairedComparison) -> str:
    """Return a sentence with difference, interval, threshold and, if undecided, the number of questions needed."""
    low, high = (f"{POINTS * bound:+.1f}" for bound in comparison.difference[1:])
    suite = suite_title(comparison.suite)
    difference = f"{amount(comparison)} {comparison.label} on the {suite} (between {low} and {high})"
    if not comparison.num_questions:
        return f"nothing is known of {comparison.label} on the {suite}: no answer was judged"
    if comparison.threshold is None:
        return difference
    if comparison.threshold >= 0:
        requirement = f"{difference}, where it has to be better by more than {POINTS * comparison.threshold:.1f}"
    else:
        requirement = f"{difference}, where at most {-POINTS * comparison.threshold:.1f} below is allowed"
    if comparison.outcome is Outcome.UNDECIDED:
        few = f"{comparison.num_questions:,} questions are too few to tell"
        return f"{requirement}: {few}, about {comparison.num_needed:,} of this kind would do"
    return requirement


def amount(comparison: PairedComparison) -> str:
    """Return the difference in words: "3.2 points better than", "as good as"."""
    points = round(POINTS * comparison.difference.mean, 1)
    if points == 0:
        return "as good as"
    return f"{abs(points):.1f} points {'better than' if points > 0 else 'below'}"


def suite_title(suite: str) -> str:
    """Return the name of a suite in a sentence: "general" -> "general suite"."""
    return {"task": "task", "general": "general suite"}[suite]
