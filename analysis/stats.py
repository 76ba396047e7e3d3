"""The statistics of the analysis, each with its formula. Arrays in, arrays out; no files, no figures.

Scores of several games are compared after normalisation (published.py). Runs are the unit that is resampled, within
each game: episodes of one run are not independent repetitions. Sources: Agarwal et al., Deep Reinforcement Learning at
the Edge of the Statistical Precipice, NeurIPS 2021 (interquartile mean, stratified bootstrap, probability of
improvement, performance profile); Wilson, J. Am. Stat. Assoc. 22, 1927 (interval of a share).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval
RESAMPLES = 2000

Strata = Sequence[np.ndarray]  # one array [runs, ...] a game
Statistic = Callable[..., np.ndarray]  # of an array [..., runs, ...] and the axis of the runs


class Estimate(NamedTuple):
    """A number with the ends of its interval, NaN where there is none."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


def mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.mean(values, axis=axis)


def iqm(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the interquartile mean: that of the middle half, a quarter of the values cut off at either end (rounded down)."""
    return stats.trim_mean(values, 0.25, axis=axis)


def resample(runs: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw as many runs as there are, with replacement, RESAMPLES times: [RESAMPLES, runs, ...].

    A single run says nothing about how runs differ: NaN, so that no interval comes of it.
    """
    if len(runs) < 2:
        return np.full((RESAMPLES, *runs.shape), np.nan)
    return runs[random.integers(len(runs), size=(RESAMPLES, len(runs)))]


def quantiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the middle LEVEL of values over the first axis."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def interval(strata: Strata, statistic: Statistic = mean, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high) of a statistic of all runs by the stratified percentile bootstrap; NaN where a game has one run."""
    random = np.random.default_rng(seed)
    return quantiles(statistic(np.concatenate([resample(runs, random) for runs in strata], axis=1), axis=1))


def difference(ours: Strata, theirs: Strata, statistic: Statistic = mean, seed: int = 0) -> tuple[float, float, float]:
    """Return statistic(ours) - statistic(theirs), with its stratified percentile bootstrap interval: (value, low, high)."""
    random = np.random.default_rng(seed)

    def drawn(strata: Strata) -> np.ndarray:
        return statistic(np.concatenate([resample(runs, random) for runs in strata], axis=1), axis=1)

    low, high = quantiles(drawn(ours) - drawn(theirs))
    return float(statistic(np.concatenate(ours)) - statistic(np.concatenate(theirs))), float(low), float(high)


def share(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's interval of a share: (low, high)."""
    found = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def probability_of_improvement(ours: Strata, theirs: Strata, seed: int = 0) -> tuple[float, float, float]:
    """Return P(X > Y) + P(X = Y) / 2 for a run X of ours and Y of theirs, mean over games, with its bootstrap interval."""
    random = np.random.default_rng(seed)

    def of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return Mann and Whitney's U over the number of pairs, over the last axes."""
        pairs = x[..., :, None] - y[..., None, :]
        return np.mean((np.sign(pairs) + 1) / 2, axis=(-2, -1))

    value = np.mean([of(x, y) for x, y in zip(ours, theirs)])
    low, high = quantiles(np.mean([of(resample(x, random), resample(y, random)) for x, y in zip(ours, theirs)], axis=0))
    return float(value), float(low), float(high)


def profile(strata: Strata, thresholds: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the performance profile: the share of runs above each threshold, with pointwise intervals; (thresholds,) each."""
    above = [(runs[:, None] > thresholds).astype(float) for runs in strata]
    low, high = interval(above, mean, seed)
    return np.concatenate(above).mean(axis=0), low, high


def standard_error(values: np.ndarray) -> float:
    """Return the standard deviation (n - 1) over the square root of n; NaN for one value."""
    return float(stats.sem(values)) if len(values) > 1 else float("nan")


def moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return the means of `width` values in a row (all, where there are fewer), [values - width + 1]."""
    width = min(width, len(values))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return (sums[width:] - sums[:-width]) / width


def first_reached(x: np.ndarray, values: np.ndarray, threshold: float, width: int) -> float:
    """Return x at the end of the first `width` values in a row whose mean is `threshold` or more; NaN: never."""
    reached = np.flatnonzero(moving_mean(values, width) >= threshold) if len(values) >= width else []
    return float(x[reached[0] + width - 1]) if len(reached) else float("nan")
