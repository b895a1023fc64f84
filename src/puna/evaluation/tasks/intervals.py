"""Scores in groups -> means and differences with 95 % intervals, without a correction for multiple comparisons.

Questions of one group (a world, a dialogue) succeed and fail together. An interval without regard to groups is too
narrow. Both intervals count at the effective number of questions: exactly up to EXACT_PAIRS questions, and above by the
normal approximation of the same test.

Shapes: N questions, G groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from puna.evaluation.tasks.paired_test import ALPHA, EXACT_PAIRS, NORMAL, Pairs, binomial_tail, lower_bound


class Interval(NamedTuple):
    """A mean with the bounds of the 95 % interval.

    Example:
        >>> score_interval([1.0] * 10, list("abcdefghij")).high
        1.0
    """

    mean: float
    low: float
    high: float


def score_interval(scores: Sequence[float], groups: Sequence[str]) -> Interval:
    """Return the interval of a mean score at the effective number of questions.

    Exact up to EXACT_PAIRS questions (Clopper and Pearson, 1934, Biometrika 26, 404-413), Wilson's above (1927, JASA
    22, 209-212). Fractional scores vary less than both methods assume, and get wide intervals. The effective
    number in place of N: Korn and Graubard (1998), Survey Methodology 24; Franco, Little, Louis and Slud (2019), J.
    Survey Statistics and Methodology 7.

    Example: `score_interval([1.0] * 10, list("abcdefghij"))` is (1.0, 0.69, 1.0).
    """
    if not scores:
        return Interval(0.0, 0.0, 1.0)
    mean = float(np.mean(scores))
    n = _counting_number(scores, groups)
    if n < EXACT_PAIRS + 1:
        return Interval(mean, _exact_share(mean, int(n)), 1 - _exact_share(1 - mean, int(n)))
    center = (mean + NORMAL**2 / (2 * n)) / (1 + NORMAL**2 / n)
    half = NORMAL / (1 + NORMAL**2 / n) * (mean * (1 - mean) / n + NORMAL**2 / (4 * n**2)) ** 0.5
    return Interval(mean, min(mean, max(0.0, center - half)), max(mean, min(1.0, center + half)))


def difference_interval(scores: Sequence[float], others: Sequence[float], groups: Sequence[str]) -> Interval:
    """Return the interval of mean(scores) - mean(others) for paired scores of the same questions.

    A question adds its difference to the wins or to the losses, counted at the effective number of pairs (`lower_bound`
    has method and sources). Fractional differences vary less than wins and losses, and get wide intervals.

    Example: 4 wins, no loss and 6 ties give (0.4, -0.01, 0.76): not shown to be better.
    """
    if not scores:
        return Interval(0.0, -1.0, 1.0)
    differences_N = np.subtract(scores, others)
    n = _counting_number(differences_N, groups)
    wins, losses = (float(np.maximum(sign * differences_N, 0).mean()) * n for sign in (1, -1))
    mean = float(differences_N.mean())
    low, high = lower_bound(Pairs(n, wins, losses)), 0.0 - lower_bound(Pairs(n, losses, wins))
    return Interval(mean, min(mean, low), max(mean, high))


def effective_number(values: Sequence[float] | np.ndarray, groups: Sequence[str]) -> float:
    """Return the number of independent questions with the same information: N / design effect, between 1 and N.

    The design effect is the variance of the mean between groups over the variance for independent questions (Kish,
    1965, "Survey Sampling"). Equal values reveal no similarity inside groups; then the number of groups counts.
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


def _counting_number(values: Sequence[float] | np.ndarray, groups: Sequence[str]) -> float:
    """Return the effective number, times (z / t)^2 if few groups make the design effect uncertain.

    Student's t in place of z widens an interval by the same factor. Source: Korn and Graubard (1998), as above.
    """
    num_groups = len(set(groups))
    is_estimated = num_groups < len(groups) and np.ptp(np.asarray(values)) > 0
    n = effective_number(values, groups)
    return n * (NORMAL / t_quantile(num_groups - 1)) ** 2 if is_estimated else n


def _exact_share(mean: float, n: int) -> float:
    """Return the lower bound of a share observed as `mean` of n; fractions of a success do not count."""
    successes = int(mean * n + 1e-9)
    low, high = 0.0, mean
    for _ in range(40 if successes else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(successes, n, middle) <= ALPHA else (low, middle)
    return low


def t_quantile(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t for at least one degree of freedom.

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
