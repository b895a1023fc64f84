"""Scores in groups -> means and differences with 95 % intervals. Corrects for no multiple comparisons.

Questions of one group (a world, a dialogue) succeed and fail together, so they tell less than as many independent ones;
an interval that overlooks this is too narrow.

Shapes: N questions, G groups.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

NORMAL = NormalDist().inv_cdf(0.975)


class Interval(NamedTuple):
    """A mean and the bounds that hold its true value in 95 of 100 cases."""

    mean: float
    low: float
    high: float


def score_interval(scores: Sequence[float], groups: Sequence[str]) -> Interval:
    """Wilson's interval at the effective number of questions.

    Scores lie in 0..1; those between have less variance than Wilson assumes, so theirs is wide rather than narrow.
    Sources: Wilson (1927), JASA 22, 209-212; with the effective number in place of N: Saha, Miller and Wang (2015),
    Int. J. Biostatistics 12, and Franco, Little, Louis and Slud (2019), J. Survey Statistics and Methodology 7; the t
    quantile for few groups as in Korn and Graubard (1998), Survey Methodology 24.
    """
    if not scores:
        return Interval(0.0, 0.0, 1.0)
    mean = float(np.mean(scores))
    n = effective_number(scores, groups)
    z = _quantile(scores, groups)
    center = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (mean * (1 - mean) / n + z**2 / (4 * n**2)) ** 0.5
    return Interval(mean, min(mean, max(0.0, center - half)), max(mean, min(1.0, center + half)))


def difference_interval(scores: Sequence[float], others: Sequence[float], groups: Sequence[str]) -> Interval:
    """Interval of mean(scores) - mean(others), paired: both are scores of the same questions.

    Agresti and Min (2005), Statistics in Medicine 24, 729-740, whose two pseudo-pairs (half a pair in each of the four
    cells) keep equal answers from giving an interval of width 0; at the effective number of pairs, and with Student's
    t where pairs come in groups. With one question in each group it is their interval.
    """
    if not scores:
        return Interval(0.0, -1.0, 1.0)
    differences_N = np.subtract(scores, others)
    n = effective_number(differences_N, groups)
    mean = float(differences_N.mean()) * n / (n + 2)
    squares = float((differences_N**2).mean()) * n + 1 - (n + 2) * mean**2
    half = _quantile(differences_N, groups) * squares**0.5 / (n + 2)
    return Interval(float(differences_N.mean()), max(-1.0, mean - half), min(1.0, mean + half))


def effective_number(values: Sequence[float] | np.ndarray, groups: Sequence[str]) -> float:
    """Return how many independent questions would tell as much: N / design effect, between 1 and N.

    The design effect is the variance of the mean as found between groups, over that of independent questions (Kish,
    1965, "Survey Sampling"). Where all values are equal nothing shows how alike a group's answers are, and the number
    of groups counts.
    """
    values_N = np.asarray(values, dtype=float)
    _, index_N = np.unique(np.asarray(groups), return_inverse=True)
    sizes_G = np.bincount(index_N)
    n, num_groups = len(values_N), len(sizes_G)
    independent = float(values_N.var()) / n
    if num_groups in (1, n) or np.ptp(values_N) == 0:
        return float(num_groups)
    residuals_G = np.bincount(index_N, weights=values_N - values_N.mean())
    between = float((residuals_G**2).sum()) * num_groups / (num_groups - 1) / n**2
    return float(n) if between <= independent else max(1.0, n * independent / between)


def _quantile(values: Sequence[float] | np.ndarray, groups: Sequence[str]) -> float:
    """Return Student's t where a variance was estimated between groups, else the normal quantile."""
    num_groups = len(set(groups))
    is_estimated = num_groups < len(groups) and np.ptp(np.asarray(values)) > 0
    return t_quantile(num_groups - 1) if is_estimated else NORMAL


def t_quantile(freedom: int) -> float:
    """Return the two-sided quantile of Student's t; one degree of freedom at least.

    Expansion 26.7.5 of Abramowitz and Stegun (1964), within 0.2 % from three degrees on; below, the exact values.
    """
    if freedom <= 2:
        return 4.30265 if freedom == 2 else 12.7062
    z = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
