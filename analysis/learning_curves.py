"""How does the score grow with steps, with hours, and with energy?

    python analysis/learning_curves.py runs/pong-gossip-...                       one run
    python analysis/learning_curves.py runs --by exchange --out curves.pdf        all runs in a folder, compared
    python analysis/learning_curves.py runs --statistic iqm                       over games and seeds

Draws the training score against the steps of all agents, hours, and kilojoules where energy was measured.

Definitions:

* score: the sum of real (never clipped) rewards of one whole training episode, of any agent. Normalised: 0 is a random
  policy, 1 the human tester of Mnih et al. 2015.
* steps (all agents): the steps of the agent at the end of the update in which the episode ended, times the agents.
* energy: of all nodes, as their counters tell; whose counters stands on the axis.
* line: from 0 to where the first run of the group ends (or to where all have a score, if that is later), x is cut into 100
  equal bins (fewer if a run has under 3,000 episodes there, but 10 at least); a run's value in a bin is the mean score of
  the episodes that ended in it, and that of the bin before where none did; drawn at the middle of the bin, from the first
  bin in which every run has a value. The line is the mean of these values over runs (--statistic mean, a panel for each
  game) or the interquartile mean of the normalised values over games × seeds (--statistic iqm; Agarwal et al., NeurIPS
  2021).
* band: of several runs, the 95% percentile bootstrap interval of the line, runs resampled within each game (2,000 times;
  with few runs it is too narrow, with one run of a game there is none); of a single run, ± 1 standard deviation of the
  scores of the episodes in the bin.
* first, last: mean of the first and last 100 scores by time, over all agents; best: the largest mean of 100 successive
  scores. Of a run of fewer episodes, all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

import checkout  # noqa: F401
import stats
from gala_mpi.run import Run, RunError
from groups import Group, grouped, labels, mixtures
from published import GAMES, normalised
from script import Answer, Options, Table, legend, line_style, main, panels

MOST_BINS, FEWEST_BINS = 100, 10
EPISODES_PER_BIN = 30  # wanted on average, at least
WINDOW = 100  # episodes behind first, best and last
AXES = {"steps": "steps (all agents)", "hours": "training time (hours)", "kilojoules": "energy (kJ, {})"}


@dataclass(frozen=True)
class Curves(Options):
    """How does the score grow?"""

    statistic: Literal["mean", "iqm"] = "mean"
    """mean: over runs, a row of panels for each game; iqm: interquartile mean of normalised scores over games × seeds."""


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
    """A line and its band; (bins,) arrays."""

    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    episodes: np.ndarray


def answer(found: list[Run], options: Curves) -> Answer:
    some = [run for run in found if len(run.scores)]
    notes = [f"{run.path}: no finished episode is there; it is left out" for run in found if run not in some]
    if not some:
        raise RunError(f"{found[0].path}: no finished episode is there; one or more is expected")
    groups = grouped(some, options.by)
    lines, more = by_game(groups) if options.statistic == "mean" else over_games(groups)
    sources = {run.joules[2] for run in some}
    axes = [axis for axis in AXES if axis != "kilojoules" or (len(sources) == 1 and "" not in sources)]
    curves = {(n, axis): curve(line, axis) for n, line in enumerate(lines) for axis in axes}
    names = list(dict.fromkeys(line.panel for line in lines))
    figure, all_panels = panels(len(names) * len(axes), columns=1 if len(names) < 3 else len(axes))
    order = labels([line.group for line in lines])
    for (name, axis), ax in zip([(name, axis) for name in names for axis in axes], all_panels):
        for n, line in enumerate(lines):
            if line.panel == name:
                plot(ax, curves[n, axis], line.group, order.index(line.group.label))
        ylabel = "normalised score (0 random, 1 human)" if options.statistic == "iqm" else "score (points)"
        ax.set(title=name, xlabel=AXES[axis].format(*sources), ylabel=ylabel, xlim=(0, None))
        if axis == "steps":
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend(figure, all_panels)
    statistic = {"mean": "mean", "iqm": "interquartile mean"}[options.statistic]
    figure.suptitle(f"{statistic} of training scores\n{bands(lines)}", fontsize=10)
    ends = [f"{line.group.label} ends at {curves[n, 'steps'].value[-1]:.3g} ({line.panel})" for n, line in enumerate(lines)]
    alt = f"Lines of the {statistic} training score against {', '.join(axes)}: {'; '.join(ends)}."
    notes += [*mixtures(groups), *more, *short(lines, axes)]
    return Answer(table(groups), figure, alt, points(lines, curves), notes, answered(lines, curves))


def answered(lines: list[Line], curves: dict[tuple[int, str], Curve]) -> str:
    """Return the answer in a sentence: of each panel which line ends highest, or how far its only line rises."""
    words = []
    for panel in dict.fromkeys(line.panel for line in lines):
        values = {line.group.label: curves[n, "steps"].value for n, line in enumerate(lines) if line.panel == panel}
        best = max(values, key=lambda label: values[label][-1])
        first, last = values[best][[0, -1]]
        what = f"ends highest of {len(values)}, at" if len(values) > 1 else f"goes from {first:.4g} to"
        words.append(f"{panel}: the score of {best} {what} {last:.4g}")
    return "; ".join(words) + "."


def by_game(groups: list[Group]) -> tuple[list[Line], list[str]]:
    return [Line(group.env, group, [group.runs], False) for group in groups], []


def over_games(groups: list[Group]) -> tuple[list[Line], list[str]]:
    """Return one line a label, over all games whose scores can be normalised, and notes."""
    known = [group for group in groups if group.env in GAMES]
    if not known:
        raise RunError(f"--statistic iqm: no run of {', '.join(GAMES)} is there; other games have no normalised score")
    games = sorted({group.env for group in known})
    lines, notes = [], [f"{group.name}: has no normalised score; it is left out" for group in groups if group not in known]
    for label in labels(known):
        mine = [group for group in known if group.label == label]
        runs = [run for group in mine for run in group.runs]
        lines.append(Line(", ".join(games), Group("all games", label, runs), [group.runs for group in mine], True))
        if absent := sorted(set(games) - {group.env for group in mine}):
            notes.append(f"{label}: has no runs of {', '.join(absent)}, which others have")
    return lines, notes


def curve(line: Line, axis: str) -> Curve:
    """Return the line and band along `axis`, a column of Run.scores; see the top of this file."""
    runs = [run for game in line.games for run in game]
    first_end = min(float(run.scores[axis].max()) for run in runs)
    end = max(first_end, max(float(run.scores[axis].min()) for run in runs))
    fewest = min(np.count_nonzero(run.scores[axis] <= end) for run in runs)
    edges = np.linspace(0, end, np.clip(fewest // EPISODES_PER_BIN, FEWEST_BINS, MOST_BINS) + 1)
    binned = {id(run): bin_scores(run.scores[axis], line.scores(run), edges) for run in runs}
    begun = max(np.flatnonzero(number)[0] for number, _, _ in binned.values())
    strata = [np.array([carried(binned[id(run)][1])[begun:] for run in game]) for game in line.games]
    statistic = stats.iqm if line.normalise else stats.mean
    value = statistic(strata)
    if len(runs) > 1:
        low, high = stats.interval(strata, statistic)
    else:
        deviation = carried(binned[id(runs[0])][2])[begun:]
        low, high = value - deviation, value + deviation
    episodes = sum(number for number, _, _ in binned.values())
    middles = (edges[:-1] + edges[1:]) / 2
    return Curve(middles[begun:], value, low, high, episodes[begun:])


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


def windows(score: np.ndarray) -> tuple[float, float, float]:
    """Return the mean score of the first, the best and the last WINDOW episodes."""
    means = stats.moving_mean(score, WINDOW)
    return means[0], means.max(), means[-1]


def table(groups: list[Group]) -> Table:
    """Return a table with a line a run."""
    rows = Table(("run", "group", "agents", "steps", "hours", "episodes", "first", "best", "last", "state"))
    for group in groups:
        for run in group.runs:
            first, best, last = windows(run.scores["score"])
            counts = (run.agents, run.steps, run.hours, len(run.scores))
            rows.rows.append((str(run.path), group.name, *counts, first, best, last, run.state))
    return rows


def short(lines: list[Line], axes: list[str]) -> list[str]:
    """Return a note for each line that ends well before some of its runs."""
    notes = []
    for line in lines:
        for axis in axes:
            ends = [float(run.scores[axis].max()) for run in line.group.runs]
            if min(ends) < 0.9 * max(ends):
                where = f"{min(ends):,.4g} {axis}, where one run ends (the last: {max(ends):,.4g})"
                notes.append(f"{line.group.name}: drawn to {where}")
    return notes


def plot(ax: Axes, curve: Curve, group: Group, number: int) -> None:
    marker = "." if len(curve.x) < 20 else ""  # a single point has no line
    ax.plot(curve.x, curve.value, label=group.counted, linewidth=1.8, marker=marker, **line_style(number))
    ax.fill_between(curve.x, curve.low, curve.high, color=line_style(number)["color"], alpha=0.18, linewidth=0)


def bands(lines: list[Line]) -> str:
    """Say what the bands of these lines are."""
    several = {len(line.group.runs) > 1 for line in lines}
    words = {False: "±1 SD of the episodes", True: "95% bootstrap interval over runs"}
    if len(several) == 1:
        return f"band: {words[several.pop()]}"
    return f"band: {words[True]}, or {words[False]} of a single run"


def points(lines: list[Line], curves: dict[tuple[int, str], Curve]) -> Table:
    rows = Table(("env", "group", "axis", "x", "value", "low", "high", "episodes", "runs"))
    for (n, axis), c in curves.items():
        line = lines[n]
        for point in zip(c.x, c.value, c.low, c.high, c.episodes):
            rows.rows.append((line.group.env, line.group.label, axis, *point, len(line.group.runs)))
    return rows


if __name__ == "__main__":
    main(answer, Curves, __doc__)
