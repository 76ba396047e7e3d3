"""Every statistic against scipy or a slow, obvious computation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

import stats

RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(0, 1, 9), RANDOM.normal(0.7, 2, 7)


def test_the_interquartile_mean_is_that_of_the_middle_half():
    for n in (1, 3, 4, 7, 8, 40):
        values = RANDOM.normal(size=n)
        middle = sorted(values)[n // 4 : n - n // 4]
        assert stats.iqm([values]) == pytest.approx(sum(middle) / len(middle))


@pytest.mark.parametrize("statistic", [stats.mean, stats.median, stats.iqm, stats.optimality_gap])
def test_the_interval_is_scipys_bootstrap(statistic):
    """Of two games: scipy resamples several samples one by one, as a stratified bootstrap does. Both are random."""

    def joined(a, b, axis=0):
        return statistic([a, b], axis=axis)

    expected = scipy.stats.bootstrap((A, B), joined, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    np.testing.assert_allclose(stats.interval([A, B], statistic), expected, atol=0.05)


# Six runs (rows) of four games, and what rliable 1.2.0 says of them: values, and intervals of 50,000 resamples (2,000 for the
# probability of improvement, 20,000 for the profile).
OURS = np.array(
    [
        [0.33, 0.6, 1.83, 0.42],
        [0.23, 1.17, 0.83, 0.32],
        [0.26, 0.6, 0.74, 0.44],
        [0.09, 0.88, 0.6, 0.29],
        [0.55, 1.26, 0.65, 0.69],
        [-0.09, 0.44, 0.84, 0.37],
    ]
)
THEIRS = np.array(
    [
        [0.4, 0.81, 1.32, 0.09],
        [0.1, 0.57, 1.54, 0.01],
        [0.1, 0.6, 1.28, 0.27],
        [0.16, 1.0, 0.65, 0.67],
        [0.01, 0.46, 1.33, 0.31],
        [0.18, 0.99, 1.64, 0.35],
    ]
)
RLIABLE = {
    stats.median: (0.62333333, 0.49416667, 0.72166667),
    stats.mean: (0.5975, 0.4925, 0.71875),
    stats.iqm: (0.53583333, 0.46666667, 0.63083333),
    stats.optimality_gap: (0.455, 0.385, 0.52375),
}


@pytest.mark.parametrize("statistic", RLIABLE, ids=lambda statistic: statistic.__name__)
def test_statistics_over_games_are_rliables(statistic):
    found = stats.estimate(list(OURS.T), statistic)
    assert found.value == pytest.approx(RLIABLE[statistic][0])
    assert found == pytest.approx(RLIABLE[statistic], abs=0.012)  # of 2,000 resamples


def test_the_probability_of_improvement_over_games_is_rliables():
    found = stats.probability_of_improvement(list(OURS.T), list(THEIRS.T))
    assert found.value == pytest.approx(0.5590277777777778)
    assert found == pytest.approx((0.5590, 0.3923, 0.7257), abs=0.02)


def test_the_performance_profile_is_rliables():
    share, low, high = stats.profile(list(OURS.T), np.array([0, 0.25, 0.5, 1]))
    assert share == pytest.approx([0.95833333, 0.875, 0.54166667, 0.125])
    assert low == pytest.approx([0.875, 0.79166667, 0.41666667, 0], abs=0.042)  # a run is 1/24
    assert high == pytest.approx([1, 0.95833333, 0.66666667, 0.25], abs=0.042)


def test_games_of_unequal_numbers_of_runs_weigh_the_same_in_means_and_medians():
    two = [np.array([0.0, 1.0, 2.0]), np.array([5.0])]
    assert (stats.mean(two), stats.median(two), stats.optimality_gap(two)) == (3, 3, pytest.approx(1 / 6))
    assert stats.median([*two, np.array([100.0, 101])]) == 5


def test_times_that_were_never_reached_are_infinite():
    times = np.array([10.0, 20, 30, np.inf, np.inf])
    assert stats.estimate([times], stats.middle) == (30, 10, np.inf)
    assert stats.estimate([times[1:]], stats.middle).value == np.inf
    assert stats.estimate([times[:1]], stats.middle)[0] == 10 and np.isnan(stats.estimate([times[:1]], stats.middle)[1:]).all()


def test_the_area_under_a_curve():
    """Scores of 1, 3 and 5 at x = 2, 4 and 6: 1 from 0 to 4, 3 to 6, 5 to 10."""
    x, values = np.array([2.0, 4, 6]), np.array([1.0, 3, 5])
    assert stats.height(x, values, 10) == (1 * 4 + 3 * 2 + 5 * 4) / 10
    assert stats.height(x[:1], values[:1], 2) == 1
    means = [sum(A[max(0, i - 3) : i + 1]) / min(4, i + 1) for i in range(len(A))]
    np.testing.assert_allclose(stats.trailing_mean(A, 4), means)
    np.testing.assert_allclose(stats.trailing_mean(A, 100), np.cumsum(A) / np.arange(1, len(A) + 1))


def test_intervals_of_curves_are_those_of_their_points():
    curves = RANDOM.normal(size=(6, 5))
    low, high = stats.interval([curves])
    for point in range(5):
        assert (low[point], high[point]) == pytest.approx(stats.interval([curves[:, point]]))


def test_one_run_of_a_game_gives_no_interval():
    assert np.isnan(stats.interval([A, B[:1]])).all()
    assert np.isnan(stats.difference([A], [B[:1]])[1:]).all()


def test_the_mean_s_interval_covers_as_often_as_it_says():
    """20 runs a time; the percentile bootstrap is known to be a little narrow."""
    covered = 0
    for seed in range(300):
        low, high = stats.interval([np.random.default_rng(seed).normal(size=20)], seed=seed)
        covered += low <= 0 <= high
    assert 0.88 < covered / 300 < 0.98


@pytest.mark.parametrize("successes, trials", [(0, 1), (3, 10), (10, 10), (7, 200)])
def test_the_interval_of_a_share_is_wilsons(successes, trials):
    z, p = scipy.stats.norm.ppf(0.975), successes / trials
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    assert stats.share(successes, trials) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_the_probability_of_improvement_counts_pairs():
    x, y = np.array([1.0, 2, 2, 5]), np.array([2.0, 0, 3])
    pairs = [(1.0 if a > b else 0.5 if a == b else 0.0) for a, b in itertools.product(x, y)]
    value, low, high = stats.probability_of_improvement([x, A], [y, B])
    of_a = scipy.stats.mannwhitneyu(A, B).statistic / (len(A) * len(B))
    assert value == pytest.approx((sum(pairs) / len(pairs) + of_a) / 2)
    assert low < value < high


def test_the_probability_of_improvement_of_two_equal_groups_is_a_half():
    value, low, high = stats.probability_of_improvement([A], [A])
    assert value == 0.5 and low < 0.5 < high


def test_the_difference_is_scipys_bootstrap():
    def difference(a, b, axis=0):
        return a.mean(axis=axis) - b.mean(axis=axis)

    expected = scipy.stats.bootstrap((A, B), difference, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    value, low, high = stats.difference([A], [B])
    assert value == pytest.approx(A.mean() - B.mean())
    np.testing.assert_allclose((low, high), expected, atol=0.1)


def test_a_profile_is_the_share_of_runs_above():
    grid = np.linspace(-3, 3, 7)
    share, low, high = stats.profile([A, B], grid)
    everything = [*A, *B]
    assert share == pytest.approx([sum(value > x for value in everything) / len(everything) for x in grid])
    assert (low <= share).all() and (share <= high).all()


def test_the_standard_error():
    mean = sum(A) / len(A)
    assert stats.standard_error(A) == pytest.approx((sum((a - mean) ** 2 for a in A) / (len(A) - 1) / len(A)) ** 0.5)
    assert np.isnan(stats.standard_error(A[:1]))


def test_moving_means_and_the_first_that_reaches():
    means = [sum(A[i : i + 4]) / 4 for i in range(len(A) - 3)]
    np.testing.assert_allclose(stats.moving_mean(A, 4), means)
    np.testing.assert_allclose(stats.moving_mean(A, 100), [A.mean()])
    x = np.arange(len(A)) * 10.0
    threshold = means[3]
    reached = next(x[i + 3] for i, mean in enumerate(means) if mean >= threshold)
    assert stats.first_reached(x, A, threshold, 4) == reached
    assert np.isnan(stats.first_reached(x, A, max(means) + 1, 4))
    assert np.isnan(stats.first_reached(x, A, -100, 100))  # fewer episodes than the mean is over
