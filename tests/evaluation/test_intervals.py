"""Intervals of paired differences: what few questions can show, by exact enumeration and by independent formulas."""

import itertools
import math

import numpy as np
import pytest

from puna.evaluation.tasks.intervals import Interval, difference_interval, score_interval
from puna.evaluation.tasks.paired_test import NORMAL, Pairs, lower_bound, score_statistic


def compare(n: int, wins: int, losses: int) -> Interval:
    """Return the interval of n ungrouped questions."""
    ours, theirs = [1.0] * wins + [0.0] * (n - wins), [0.0] * wins + [1.0] * losses + [0.0] * (n - wins - losses)
    return difference_interval(ours, theirs, [str(number) for number in range(n)])


def outcomes(n: int) -> list[tuple[int, int]]:
    return [(wins, losses) for wins in range(n + 1) for losses in range(n + 1 - wins)]


def mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact test, from its definition."""
    discordant, more = wins + losses, max(wins, losses)
    return min(1.0, 2 * sum(math.comb(discordant, k) for k in range(more, discordant + 1)) / 2**discordant)


@pytest.mark.parametrize("n", [5, 10, 17, 28])
def test_a_bound_of_few_pairs_errs_in_at_most_25_of_1000_samples_whatever_the_truth(n: int) -> None:
    pairs = outcomes(n)
    wins, losses = np.array(pairs).T
    bounds = np.array([lower_bound(Pairs(n, *pair)) for pair in pairs])
    ways = [math.factorial(n) // math.prod(map(math.factorial, (b, c, n - b - c))) for b, c in pairs]
    source = np.random.default_rng(n)
    errors, misses = [], []
    for _ in range(400):
        discordant = source.random() ** source.choice([1, 3])
        p10 = discordant * source.choice([0.0, 0.5, 1.0, source.random(), source.random()])
        p01 = discordant - p10
        chances = np.array(ways) * p10**wins * p01**losses * (1 - p10 - p01) ** (n - wins - losses)
        is_above = bounds > p10 - p01 + 1e-9
        is_below = np.array([-bounds[pairs.index((c, b))] for b, c in pairs]) < p10 - p01 - 1e-9
        errors.append(chances[is_above].sum())
        misses.append(chances[is_above | is_below].sum())
    assert 0.015 < max(errors) <= 0.025 and max(misses) <= 0.05


@pytest.mark.parametrize("n", [6, 10, 15, 24, 80])
def test_few_questions_show_a_difference_exactly_where_mcnemars_exact_test_does(n: int) -> None:
    for wins, losses in outcomes(n) if n < 80 else [(5, 0), (6, 0), (12, 3), (13, 3), (40, 25), (45, 25)]:
        interval = compare(n, wins, losses)
        assert (interval.low > 0) == (mcnemar(wins, losses) <= 0.05 and wins > losses), (wins, losses)


def test_four_wins_and_six_ties_are_not_better_nor_are_five_wins_among_any_number_of_ties() -> None:
    assert compare(10, 4, 0).low < 0 < compare(10, 6, 0).low
    assert all(compare(n, 5, 0).low <= 0 for n in (5, 6, 10, 60, 61, 500))
    assert all(compare(n, 6, 0).low > 0 for n in (6, 10, 60, 61, 500))


@pytest.mark.parametrize("n", [9, 25, 61])
def test_more_wins_or_fewer_losses_never_lower_a_bound(n: int) -> None:
    bound = {pair: lower_bound(Pairs(n, *pair)) for pair in outcomes(n)}
    for (wins, losses), value in bound.items():
        assert value <= bound.get((wins + 1, losses), 1.0)
        assert value <= bound.get((wins, losses - 1), 1.0)
        assert value <= bound.get((wins + 1, losses - 1), 1.0)


@pytest.mark.parametrize(("n", "wins", "losses"), [(10, 7, 1), (40, 9, 9), (90, 31, 12), (300, 0, 4)])
def test_an_interval_turns_around_with_the_models(n: int, wins: int, losses: int) -> None:
    mean, low, high = compare(n, wins, losses)
    assert compare(n, losses, wins) == (-mean, -high, -low) and low <= mean <= high


@pytest.mark.parametrize(("n", "wins", "losses", "delta"), [(30, 9, 4, 0.1), (30, 0, 4, -0.02), (80, 12, 30, -0.4)])
def test_the_score_statistic_has_the_variance_of_the_likeliest_truth(n: int, wins: int, losses: int, delta: float):
    p01 = np.linspace(max(0, -delta), (1 - delta) / 2, 2_000_001)[1:-1]
    ties = n - wins - losses
    likelihood = wins * np.log(p01 + delta) + losses * np.log(p01) + ties * np.log(1 - delta - 2 * p01)
    best = p01[likelihood.argmax()]
    expected = (wins - losses - n * delta) / math.sqrt(n * (2 * best + delta - delta**2))
    found = score_statistic(n, np.array(wins), np.array(losses), np.array(delta))
    assert found == pytest.approx(expected, abs=1e-4)


def test_many_pairs_get_tangos_bounds_and_a_gain_agrestis_and_mins_where_that_is_lower() -> None:
    _, low, high = compare(160, 40, 20)
    for bound, quantile in ((low, NORMAL), (high, -NORMAL)):
        statistic = score_statistic(160, np.array(40), np.array(20), np.array(bound))
        assert statistic == pytest.approx(quantile, abs=1e-4)
    mean = 7 / 302
    expected = mean - NORMAL * math.sqrt((8 / 302 - mean**2) / 302)
    assert compare(300, 7, 0).low == pytest.approx(expected)
    assert score_statistic(300, np.array(7), np.array(0), np.array(expected)) > NORMAL + 0.1


def test_equal_answers_to_100_questions_do_not_rule_out_a_loss_of_two_points() -> None:
    # A model that is wrong in 2 of 100 cases more gives such answers with probability 0.13.
    assert -0.04 < compare(100, 0, 0).low < -0.02


def test_a_share_of_few_questions_has_the_interval_of_clopper_and_pearson() -> None:
    names = [str(number) for number in range(10)]
    # 4 of 10: any table of exact binomial limits.
    assert score_interval([1.0] * 4 + [0.0] * 6, names)[1:] == pytest.approx((0.1216, 0.7376), abs=1e-4)
    assert score_interval([1.0] * 10, names)[1:] == pytest.approx((0.025**0.1, 1.0), abs=1e-9)
    assert score_interval([0.0] * 10, names)[1:] == pytest.approx((0.0, 1 - 0.025**0.1), abs=1e-9)


def test_fractions_of_a_question_count_against_the_candidate() -> None:
    for wins, losses in itertools.product((3.0, 3.4, 3.99), (1.0, 1.01, 1.6)):
        fractions = lower_bound(Pairs(20.9, wins, losses))
        assert fractions == lower_bound(Pairs(20, 3, math.ceil(losses)))
    assert lower_bound(Pairs(0.4, 0.4, 0.0)) == -1.0
