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
        assert stats.iqm(values) == pytest.approx(sum(middle) / len(middle))


@pytest.mark.parametrize("statistic", [stats.mean, stats.iqm])
def test_the_interval_is_scipys_bootstrap(statistic):
    """Of two games: scipy resamples several samples one by one, as a stratified bootstrap does. Both are random."""

    def joined(a, b, axis=0):
        return statistic(np.concatenate([a, b], axis=axis), axis=axis)

    expected = scipy.stats.bootstrap((A, B), joined, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    np.testing.assert_allclose(stats.interval([A, B], statistic), expected, atol=0.05)


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
