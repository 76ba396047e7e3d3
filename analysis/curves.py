"""The line of a group of runs along an axis, its band, and the lines of its runs: learning_curves.py has the definitions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

import checkout  # noqa: F401
import stats
from gala_mpi.run import Run
from groups import Group
from published import normalised

MOST_BINS, FEWEST_BINS = 100, 10
EPISODES_PER_BIN = 30  # wanted on average, at least


@dataclass(frozen=True)
class Line:
    """One line of one panel: runs of one game, or of several if scores are normalised."""

    panel: str
    group: Group
    games: list[list[Run]]  # a list a game
    normalise: bool

    def scores(self, run: Run) -> np.ndarray:
        values = run.scores["score"]
        return normalised(run.config["env"], values) if self.normalise else values


@dataclass(frozen=True)
class Curve:
    """A line and its band; (bins,) arrays.

    Attributes:
        episodes: that ended in each bin, of the runs that count there.
        runs: how many these are.
        until, end: where the line ends, and the last of its runs.
        every: the middles of all bins, (all bins,), where the line goes or not.
        each: the values of every run in these, [runs, all bins], NaN before it begins and after it has ended.
    """

    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    episodes: np.ndarray
    runs: np.ndarray
    until: float
    end: float
    every: np.ndarray
    each: np.ndarray


def curve(line: Line, axis: str, smooth: int = 1) -> Curve:
    """Return the line and band along `axis`, a column of Run.scores; see the top of this file."""
    runs = [run for game in line.games for run in game]
    ends = np.array([float(run.scores[axis].max()) for run in runs])
    fewest = min(len(run.scores) * ends.max() / max(end, 1e-12) for run, end in zip(runs, ends))
    edges = np.linspace(0, ends.max(), int(np.clip(fewest // EPISODES_PER_BIN, FEWEST_BINS, MOST_BINS)) + 1)
    binned = [bin_scores(run.scores[axis], line.scores(run), edges) for run in runs]
    number, means, deviations = (np.array(part) for part in zip(*binned))
    going = np.array([lasts(row) for row in number])
    each = np.array([smoothed(carried(row), on, smooth) for row, on in zip(means, going)])
    bounds = np.cumsum([0, *map(len, line.games)])
    games = [slice(*pair) for pair in itertools.pairwise(bounds)]  # the rows of each game
    there = np.isfinite(each)
    whole = (there == going).all(axis=0) & np.array([there[game].any(axis=0) for game in games]).all(axis=0)
    shown = np.flatnonzero(whole)
    value, low, high = (np.full(len(edges) - 1, np.nan) for _ in range(3))
    statistic = stats.iqm if line.normalise else stats.mean
    for bins in stretches(there[:, shown]):
        bins = shown[bins]
        strata = [each[game][there[game, bins[0]]][:, bins] for game in games]
        value[bins] = statistic(strata)
        low[bins], high[bins] = stats.interval(strata, statistic)
    if len(runs) == 1:
        deviation = carried(deviations[0])
        low, high = value - deviation, value + deviation
    middles = (edges[:-1] + edges[1:]) / 2
    counts = np.where(there, number, 0).sum(axis=0), there.sum(axis=0)
    until = edges[shown[-1] + 1] if len(shown) else 0.0
    return Curve(*(row[shown] for row in (middles, value, low, high, *counts)), until, edges[-1], middles, each)


def lasts(number: np.ndarray) -> np.ndarray:
    """Return in which bins a run has not ended yet, by the number of its episodes in each."""
    last = np.flatnonzero(number)[-1]
    return np.arange(len(number)) <= (last if last < len(number) - 2 else len(number))


def smoothed(values: np.ndarray, going: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of `width` values around each, of those that are there; NaN where there is none or the run has ended."""
    there = np.isfinite(values) & going
    window = np.ones(width)
    sums, counts = (np.convolve(row, window, "full")[width // 2 :][: len(row)] for row in (np.where(there, values, 0), there))
    return np.where(there, sums / np.maximum(counts, 1), np.nan)


def stretches(there: np.ndarray) -> list[np.ndarray]:
    """Return the bins in a row in which the same runs are there, [runs, bins]."""
    changes = np.flatnonzero((there[:, 1:] != there[:, :-1]).any(axis=0)) + 1
    return [bins for bins in np.split(np.arange(there.shape[1]), changes) if len(bins)]


def bin_scores(x: np.ndarray, score: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return number, mean and standard deviation of the scores in each bin, (bins,) each; NaN without scores.

    A bin holds its left edge, the last bin holds both; scores beyond the last edge are left out.
    """
    bins, inside = len(edges) - 1, x <= edges[-1]
    score, index = score[inside], np.searchsorted(edges[1:-1], x[inside], side="right")
    number = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, score, bins) / number
        variance = np.bincount(index, (score - mean[index]) ** 2, bins) / number
    return number, mean, np.sqrt(variance)


def carried(values: np.ndarray) -> np.ndarray:
    """Return `values` with each NaN replaced by the last number before it, if there is one."""
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[last]
