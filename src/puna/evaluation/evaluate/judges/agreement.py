"""Verdicts of a judge and human labels of the same answers -> the judge's agreement with people."""

from collections.abc import Sequence
from typing import NamedTuple

from puna.evaluation.tasks.intervals import score_interval


class Agreement(NamedTuple):
    """Share of equal verdicts with its 95 % interval, and Cohen's kappa.

    Example:
        >>> str(measure_agreement([True, False, True, True], [True, False, False, True], list("abcd")))
        'agrees with 75% of 4 human labels (19% to 99%), kappa 0.50'
    """

    n: int
    share: float
    low: float
    high: float
    kappa: float

    def __str__(self) -> str:
        bounds = f"{self.low:.0%} to {self.high:.0%}"
        return f"agrees with {self.share:.0%} of {self.n:,} human labels ({bounds}), kappa {self.kappa:.2f}"


def measure_agreement(verdicts: Sequence[bool], labels: Sequence[bool], groups: Sequence[str]) -> Agreement:
    """Compare verdicts with labels of the same answers.

    kappa = (share - chance) / (1 - chance), where chance is the expected agreement of two random judges with the same
    shares of "right". If judge and people give every answer the same verdict, kappa is undefined, and 0 here: constant
    labels show nothing about a judge. Source: Cohen (1960), Educational and Psychological Measurement 20, 37-46.

    Example:
        >>> measure_agreement([True, False, True, True], [True, False, False, True], list("abcd")).kappa
        0.5
    """
    equal = [float(a == b) for a, b in zip(verdicts, labels, strict=True)]
    interval = score_interval(equal, groups)
    n = max(1, len(equal))
    judged, labelled = sum(verdicts) / n, sum(labels) / n
    chance = judged * labelled + (1 - judged) * (1 - labelled)
    kappa = (interval.mean - chance) / (1 - chance) if chance < 1 else 0.0
    return Agreement(len(equal), interval.mean, interval.low, interval.high, kappa)
