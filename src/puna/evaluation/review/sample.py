"""Pairs -> the number to judge for a margin, and a seeded random sample in proportion to the groups.

Notation: N pairs in the evaluation, n judged, m margin (half-width of the 95 % interval, 0..1), v variance of a pair.
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from puna.evaluation.review.pairs import Pair
from puna.evaluation.tasks.intervals import NORMAL, Interval, difference_interval, score_interval

MIN_PAIRS = 30  # below, the normal approximation of the margin says little
SECONDS_PER_PAIR = 10.0  # until the reviewer's own pace is known


class Plan(NamedTuple):
    """A sample size with the margin: the half-width of the 95 % interval, 0..1.

    Example:
        >>> Plan(num_pairs=235, margin=0.05).num_pairs
        235
    """

    num_pairs: int
    margin: float


def plan_sample(pairs: Sequence[Pair], margin: float, max_pairs: int | None = None) -> Plan:
    """Return the number of pairs to judge for a margin.

    n0 = z**2 * v / m**2 pairs of an endless population, and n = n0 / (1 + (n0 - 1) / N) of N pairs (Cochran, 1977,
    "Sampling Techniques", 4.4: finite population correction). Margin 0 takes all pairs.

    The variance v of a pair's difference (1, 0 or -1) is the discordant share less the squared difference (Connor,
    1987, Biometrics 43, 207-211), equal to p(1 - p) + p'(1 - p') - 2 cov for shares p and p' of right answers. Two
    answers to the same question succeed together rather than in turns (cov >= 0), so v <= 1/2. Pairs of equal answers
    differ by 0 for certain: v <= q / 2 where q is the share of differing pairs. A single answer per question: v <= 1/4.

    Args:
        pairs: All pairs of the evaluation.
        margin: Wanted half-width, 0 to 1.
        max_pairs: Largest sample; the margin in the plan is then wider than wanted.

    Example:
        >>> plan_sample(pairs, margin=0.05).num_pairs  # 600 pairs, half with different answers
        235
    """
    total, variance = len(pairs), pair_variance(pairs)
    size = total
    if margin > 0:
        endless = NORMAL**2 * variance / margin**2
        size = min(total, max(MIN_PAIRS, math.ceil(endless / (1 + (endless - 1) / total))))
    size = min(size, max_pairs or size)
    return Plan(size, NORMAL * math.sqrt(variance / size) * finite_population(size, total))


def pair_variance(pairs: Sequence[Pair]) -> float:
    """Return the upper bound of v, as explained at `plan_sample`.

    Example:
        >>> pair_variance(pairs)  # 600 pairs of two checkpoints, half with different answers
        0.25
        >>> plan_sample(pairs, margin=0.05).num_pairs
        235
    """
    if len({name for answer in pairs[0].answers for name in answer.checkpoints}) == 1:
        return 0.25
    return sum(len(pair.answers) == 2 for pair in pairs) / len(pairs) / 2


def finite_population(num_judged: int, total: int) -> float:
    """Return the factor of a standard error when `num_judged` of `total` were drawn without replacement (Cochran).

    Example:
        >>> round(finite_population(235, 600), 3)
        0.781
    """
    return math.sqrt((total - num_judged) / (total - 1)) if total > 1 else 0.0


def draw_sample(pairs: Sequence[Pair], num_pairs: int, seed: int) -> list[Pair]:
    """Draw pairs in proportion to the groups; pairs without a judgement by rule come first.

    The r-th pair of a shuffled cell of k pairs gets the place (r + u) / k with a random u for the cell, and the pairs
    with the lowest places are drawn: every pair has the same chance, and larger samples contain smaller samples. A
    cell is a group, apart by whether a rule judged and whether the answers are equal.

    Example:
        >>> len(draw_sample(pairs, 235, seed=0))
        235
    """
    source = random.Random(seed)
    cells: dict[tuple[object, ...], list[Pair]] = {}
    for pair in pairs:
        cell = (pair.is_judged_by_rule, len(pair.answers), pair.task, pair.group)
        cells.setdefault(cell, []).append(pair)
    placed: list[tuple[float, Pair]] = []
    for cell in cells.values():
        source.shuffle(cell)
        start = source.random()
        placed += [((rank + start) / len(cell), pair) for rank, pair in enumerate(cell)]
    placed.sort(key=lambda item: item[0])
    drawn = [pair for _, pair in placed[:num_pairs]]
    return sorted(drawn, key=lambda pair: pair.is_judged_by_rule)


def sample_difference(scores: Sequence[float], others: Sequence[float], total: int) -> Interval:
    """Return mean(scores) - mean(others) over `total` pairs, from a random sample; 95 % interval.

    Example:
        >>> round(sample_difference([1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], total=100).low, 3)
        -0.334
    """
    return _corrected(difference_interval(scores, others, _alone(scores)), len(scores), total)


def sample_share(scores: Sequence[float], total: int) -> Interval:
    """Return the mean score over `total` answers, from a random sample; 95 % interval.

    Example:
        >>> round(sample_share([1.0, 1.0, 0.0, 1.0], total=100).low, 3)
        0.203
    """
    return _corrected(score_interval(scores, _alone(scores)), len(scores), total)


def _corrected(interval: Interval, num_judged: int, total: int) -> Interval:
    if num_judged == 0:
        return interval
    mean, low, high = interval
    factor = finite_population(num_judged, total)
    return Interval(mean, mean - factor * (mean - low), mean + factor * (high - mean))


def _alone(scores: Sequence[float]) -> list[str]:
    """Return a separate group for every score: answers drawn at random from an evaluation are independent."""
    return [str(number) for number in range(len(scores))]
