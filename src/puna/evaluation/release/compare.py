"""Answers of a candidate and of another model to the same questions -> whether a demand on their difference is met.

A demand is a least difference: above 0 for a model that has to be beaten, below 0 (a margin) for one that must not be
fallen behind. It is met when the whole 95 % interval lies above it, so chance lets a wrong candidate through in 2.5 of
100 cases. Every demand has to be met at once: then no correction for their number is needed, since the chance that all
of them err is not greater than that of one (Berger, 1982, Technometrics 24, 295-300).
"""

import math
from dataclasses import dataclass
from enum import Enum

from pydantic import Field

from puna.evaluation.release.evaluations import Answered
from puna.evaluation.tasks.intervals import Interval, difference_interval
from puna.pipeline.config import StageConfig

POINTS = 100  # differences are told in points of 100


class Gate(StageConfig):
    """What a candidate must show to be let through. Shares are of 1: 0.05 are 5 points of 100."""

    base_gain: float = Field(
        default=0.0,
        gt=-1,
        lt=1,
        description="Lead over the base on the task, as a share of 1, to be exceeded; negative: the largest drop",
    )
    teacher_margin: float = Field(default=0.05, ge=0, lt=1, description="to be at most so much below the teacher")
    in_use_margin: float = Field(default=0.02, ge=0, lt=1, description="to be at most so much below the model in use")
    null_margin: float = Field(
        default=0.05, ge=0, lt=1, description="Lead over every null model, as a share of 1, that must be exceeded"
    )
    max_unjudged: float = Field(
        default=0.0, ge=0, le=1, description="Largest share of answers, 0 to 1, without a judgement of their content"
    )
    general_margin: float = Field(default=0.03, ge=0, lt=1, description="most to be forgotten of the general suite")
    max_megabytes: float | None = Field(default=None, gt=0, description="most that the weights may take on the disk")
    min_tokens_per_s: float | None = Field(default=None, gt=0, description="least speed, as the evaluation had it")
    usd_per_hour: float | None = Field(default=None, gt=0, description="price of a machine like the evaluation's")
    max_usd_per_million: float | None = Field(default=None, gt=0, description="most that a million tokens may cost")
    overlap_words: int = Field(default=13, ge=8, le=50, description="n of the n-grams by which test data are sought")
    overlap_share: float = Field(default=0.5, gt=0, le=1, description="of a question's n-grams in one training row")
    max_overlaps: int = Field(default=0, ge=0, description="questions found in training data that are let pass")


class Outcome(Enum):
    """What a comparison came to."""

    MET = "met"
    MISSED = "not met"
    UNDECIDED = "too few questions to tell"
    TOLD = "not demanded"


@dataclass(frozen=True)
class Comparison:
    """How much better the candidate is than another model, and what was demanded: `least`, None for nothing."""

    suite: str
    role: str
    name: str
    difference: Interval
    least: float | None
    num_questions: int
    num_groups: int
    better: int
    worse: int
    label: str = ""

    @property
    def outcome(self) -> Outcome:
        if self.least is None:
            return Outcome.TOLD
        if self.difference.low > self.least:
            return Outcome.MET
        # Where even a model as good as the other could not show it, the questions are too few.
        is_blind = self.least < 0 and self._half_width >= -self.least
        is_open = self.difference.high > self.least and (self.difference.mean > self.least or is_blind)
        return Outcome.UNDECIDED if is_open else Outcome.MISSED

    @property
    def num_needed(self) -> int | None:
        """About how many questions of this kind it takes to decide; None where more of them would hardly help.

        For the difference that was seen if that is enough, else for a model as good as the other.
        """
        if self.outcome is not Outcome.UNDECIDED or self.least is None or not self.num_questions:
            return None
        mean = self.difference.mean
        room = mean - self.least if mean > self.least else -self.least
        needed = max(self.num_questions + 1, self.num_questions * (self._half_width / room) ** 2)
        step = 10 ** max(0, math.floor(math.log10(needed)) - 1)
        return math.ceil(needed / step) * step

    @property
    def _half_width(self) -> float:
        return (self.difference.high - self.difference.low) / 2


def compare(
    candidate: Answered, other: Answered, *, suite: str, role: str, least: float | None, label: str = ""
) -> Comparison:
    """Pair the answers of two models by question, where both were judged; both come from one evaluation."""
    questions = [question for question in candidate.scores if question in other.scores]
    ours = [candidate.scores[question] for question in questions]
    theirs = [other.scores[question] for question in questions]
    groups = [candidate.groups[question] for question in questions]
    difference = difference_interval(ours, theirs, groups)
    better = sum(a > b for a, b in zip(ours, theirs, strict=True))
    worse = sum(a < b for a, b in zip(ours, theirs, strict=True))
    return Comparison(suite, role, other.name, difference, least, len(ours), len(set(groups)), better, worse, label)
