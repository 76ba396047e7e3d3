"""The statistics of the analysis, each with its formula. Arrays in, arrays out; no files, no figures.

Scores of several games are compared after normalisation (published.py). Runs are the unit that is resampled, within
each game: episodes of one run are not independent repetitions. Sources: Agarwal et al., Deep Reinforcement Learning at
the Edge of the Statistical Precipice, NeurIPS 2021 (interquartile mean, optimality gap, stratified bootstrap, probability of
improvement, performance profile), whose library rliable gives the same numbers; Wilson, J. Am. Stat. Assoc. 22, 1927
(interval of a share).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval
RESAMPLES = 2000

Strata = Sequence[np.ndarray]  # one array [..., runs, ...] a game
Statistic = Callable[..., np.ndarray]  # of strata and the axis of the runs


class Estimate(NamedTuple):
    """A number with the ends of its interval, NaN where there is none."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


# Statistics of runs of several games.


def mean(strata: Strata, axis: int = 0) -> np.ndarray:
    """Return the mean over games of the mean over runs."""
    return np.mean([runs.mean(axis=axis) for runs in strata], axis=0)


def median(strata: Strata, axis: int = 0) -> np.ndarray:
    """Return the median over games of the mean over runs."""
    return np.median([runs.mean(axis=axis) for runs in strata], axis=0)


def iqm(strata: Strata, axis: int = 0) -> np.ndarray:
    """Return the interquartile mean of the runs of all games: a quarter of them cut off at either end (rounded down)."""
    return stats.trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)


def optimality_gap(strata: Strata, axis: int = 0) -> np.ndarray:
    """Return by how much runs stay below a normalised score of 1 (0 above it): mean over games of the mean over runs."""
    return mean([np.maximum(1 - runs, 0) for runs in strata], axis)


def pooled(strata: Strata, axis: int = 0) -> np.ndarray:
    """Return the mean over the runs of all games."""
    return np.concatenate(strata, axis=axis).mean(axis=axis)


def middle(strata: Strata, axis: int = 0) -> np.ndarray:
    """Return the median of the runs of all games; infinite where half of them are."""
    return np.median(np.concatenate(strata, axis=axis), axis=axis)


def resample(runs: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw as many runs as there are, with replacement, RESAMPLES times: [RESAMPLES, runs, ...].

    A single run says nothing about how runs differ: NaN, so that no interval comes of it.
    """
    if len(runs) < 2:
        return np.full((RESAMPLES, *runs.shape), np.nan)
    return runs[random.integers(len(runs), size=(RESAMPLES, len(runs)))]


def quantiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the middle LEVEL of values over the first axis. Some may be infinite: none is made up between two."""
    method = "linear" if np.isfinite(values).all() else "inverted_cdf"
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method=method)
    return low, high


def interval(strata: Strata, statistic: Statistic = mean, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high) of a statistic by the stratified percentile bootstrap; NaN where a game has one run."""
    random = np.random.default_rng(seed)
    return quantiles(statistic([resample(runs, random) for runs in strata], axis=1))


def estimate(strata: Strata, statistic: Statistic = mean, seed: int = 0) -> Estimate:
    """Return a statistic of strata [runs], with its stratified percentile bootstrap interval."""
    low, high = interval(strata, statistic, seed)
    return Estimate(float(statistic(strata)), float(low), float(high))


def difference(ours: Strata, theirs: Strata, statistic: Statistic = mean, seed: int = 0) -> Estimate:
    """Return statistic(ours) - statistic(theirs), with its stratified percentile bootstrap interval."""
    random = np.random.default_rng(seed)
    drawn = [statistic([resample(runs, random) for runs in strata], axis=1) for strata in (ours, theirs)]
    low, high = quantiles(drawn[0] - drawn[1])
    return Estimate(float(statistic(ours) - statistic(theirs)), float(low), float(high))


def share(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's interval of a share: (low, high)."""
    found = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def probability_of_improvement(ours: Strata, theirs: Strata, seed: int = 0) -> Estimate:
    """Return P(X > Y) + P(X = Y) / 2 for a run X of ours and Y of theirs, mean over games, with its bootstrap interval."""
    random = np.random.default_rng(seed)

    def of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return Mann and Whitney's U over the number of pairs, over the last axes."""
        pairs = x[..., :, None] - y[..., None, :]
        return np.mean((np.sign(pairs) + 1) / 2, axis=(-2, -1))

    value = np.mean([of(x, y) for x, y in zip(ours, theirs)])
    low, high = quantiles(np.mean([of(resample(x, random), resample(y, random)) for x, y in zip(ours, theirs)], axis=0))
    return Estimate(float(value), float(low), float(high))


def profile(strata: Strata, thresholds: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the performance profile: the share of runs above each threshold, with pointwise intervals; (thresholds,) each."""
    above = [(runs[:, None] > thresholds).astype(float) for runs in strata]
    low, high = interval(above, pooled, seed)
    return pooled(above), low, high


def standard_error(values: np.ndarray) -> float:
    """Return the standard deviation (n - 1) over the square root of n; NaN for one value."""
    return float(stats.sem(values)) if len(values) > 1 else float("nan")


def standard_error_in_a_row(values: np.ndarray) -> float:
    """Return the standard error of the mean of values that follow each other, and so may be alike; NaN for one value.

    It is that of n / (1 + 2 Σ_k ρ_k) independent values (n at most), with the autocorrelations ρ_k of lag 1, 2, ... until the
    first that is not positive (Sokal, Monte Carlo Methods in Statistical Mechanics, 1997).
    """
    n, deviations = len(values), values - values.mean()
    products = np.correlate(deviations, deviations, "full")[n:]  # of lag 1, 2, ...
    positive = products[: np.argmax(np.append(products, 0) <= 0)]
    variance = deviations @ deviations
    return (
        standard_error(values) * float(np.sqrt(1 + 2 * positive.sum() / variance)) if variance > 0 else standard_error(values)
    )


def moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return the means of `width` values in a row (all, where there are fewer), [values - width + 1]."""
    width = min(width, len(values))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return (sums[width:] - sums[:-width]) / width


def trailing_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return at each value the mean of the last `width` values until then (all, where there are fewer), [values]."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - width, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def height(x: np.ndarray, values: np.ndarray, end: float) -> float:
    """Return the area from 0 to `end` under the steps that are values[i] from x[i] on, and values[0] before, over `end`.

    Args:
        x: ascending, [values], `end` at most.
    """
    return float(np.diff(np.concatenate([[0.0], x[1:], [end]])) @ values / end)


def first_reached(x: np.ndarray, values: np.ndarray, threshold: float, width: int) -> float:
    """Return x at the end of the first `width` values in a row whose mean is `threshold` or more; NaN: never."""
    reached = np.flatnonzero(moving_mean(values, width) >= threshold) if len(values) >= width else []
    return float(x[reached[0] + width - 1]) if len(reached) else float("nan")
