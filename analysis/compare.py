"""Is one group of runs better than another, and how sure is that?

    python analysis/compare.py runs --by exchange --base allreduce
    python analysis/compare.py runs --all-pairs
    python analysis/compare.py runs --threshold pong 15 --steps 2000000

Compares every group with the base group (or with every other one) in each game that both have and over all of them, at a
common step and at a common hour.

Definitions (Agarwal et al., NeurIPS 2021; `common.py` and `stats.py` have the formulae):

{common}
* score of a run: in points in a row of one game; over several games normalised (0 random, 1 human), the games without a
  normalised score left out.
* probability of improvement: P(X > Y) + P(X = Y) / 2 for a run X of the group and Y of the base, mean over games. 0.5 says
  nothing, and an interval that holds it shows no difference; the interval is a 95% percentile bootstrap, runs resampled
  within each game and group.
* difference: of the interquartile means over games × seeds, group minus base, with the same kind of interval; of scores, and
  of areas.
* performance profile: the share of runs that score above x at the common step; band: pointwise 95% bootstrap interval.
* to threshold: of each run, the step (in rows of steps) or hour at which the mean of 100 successive training scores first
  reaches the game's threshold; the median over runs with its bootstrap interval, a run that never does counting as infinite
  (∞: half of the runs or more never do), however far it went. The threshold is --threshold, or as in robustness.py.

With 3 runs or fewer a game, bootstrap intervals are too narrow: they cannot show what no run has shown. With one there is
no interval.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

import checkout  # noqa: F401
import common
import stats
from common import AXES, WINDOW, Point
from gala_mpi.run import Run, RunError
from groups import Group, grouped, labels, mixtures
from published import GAMES, normalised
from robustness import check_thresholds, thresholds
from script import Answer, Options, Table, legend, line_style, main, panels
from stats import Estimate, Strata
from tables import show

FEW = 3  # runs
MOST_SAID = 3  # pairs, in a sentence
ALL = "all games"
__doc__ = __doc__.format(common=common.__doc__.partition("\n\n")[2].rstrip())


@dataclass(frozen=True)
class Compare(Options):
    """Is one group of runs better than another?"""

    base: str = ""
    """The group that the others are compared with, as the table calls it without the game. Empty: A2C if it is there, else
    the first; of those that share a game with another."""
    all_pairs: bool = False
    """Compare every two groups."""
    threshold: dict[str, float] = field(default_factory=dict)
    """GAME SCORE ...: the score whose steps and hours are asked for, for example pong 15."""
    steps: Optional[float] = None
    """Compare at this step instead of the common one."""
    hours: Optional[float] = None
    """Compare at this hour instead of the common one."""


@dataclass(frozen=True)
class Pair:
    """Two groups, by their labels, in some games at a common step or hour."""

    ours: str
    base: str
    axis: str
    points: dict[str, Point]  # by game

    @property
    def normalise(self) -> bool:
        return len(self.points) > 1

    def strata(self, label: str, areas: bool = False) -> Strata:
        """Return the score, or the area, of every run of a group: for each game float64 [runs]."""
        values = {game: point.areas(label) if areas else point.scores(label) for game, point in self.points.items()}
        return [normalised(game, value) if self.normalise else value for game, value in values.items()]

    def improvement(self) -> Estimate:
        return stats.probability_of_improvement(self.strata(self.ours), self.strata(self.base))

    def row(self, limits: dict[str, float], groups: dict[tuple[str, str], Group]) -> tuple:
        """Return a row of the table."""
        game = ALL if self.normalise else next(iter(self.points))
        runs = [sum(len(point.groups[label]) for point in self.points.values()) for label in (self.ours, self.base)]
        gaps = [stats.difference(self.strata(self.ours, a), self.strata(self.base, a), stats.iqm) for a in (False, True)]
        times = [None, None]
        if game in limits:
            times = [time_to(groups[game, label], limits[game], self.axis) for label in (self.ours, self.base)]
        where = f"common {self.axis}" if self.normalise else str(self.points[game])
        unit = "normalised" if self.normalise else "points"
        return (self.ours, self.base, game, where, *runs, self.improvement(), *gaps, unit, *times)


HEADINGS = ("group", "base", "game", "at", "runs", "base's runs", "P(improvement)", "IQM difference", "area difference")
HEADINGS += ("scores", "to threshold", "base to threshold")


def answer(found: list[Run], options: Compare) -> Answer:
    for name in AXES:
        common.check_place(getattr(options, name), name)
    scored = [run for run in found if len(run.scores)]
    if not scored:
        raise RunError(f"{found[0].path}: no finished episode is there; one or more is expected")
    check_thresholds(options.threshold, found)
    groups = grouped(scored, options.by, known=found)
    by_place = {(group.env, group.label): group for group in groups}
    limits = thresholds({group.env for group in groups}, options.threshold)
    at = {axis: common.points(groups, axis, getattr(options, axis)) for axis in AXES}
    sides = choose(groups, options)
    pairs = [pair for ours, base in sides for axis in AXES for pair in of_games(ours, base, axis, at[axis])]
    if not pairs:
        raise RunError(incomparable(sides, groups, at["steps"]))
    table = Table(HEADINGS, [pair.row(limits, by_place) for pair in pairs])
    figure, points = draw(pairs, table, at["steps"], labels(grouped(found, options.by)))
    said = [likelier(*row[:2], row[6], *row[2:4]) for row in table.rows]
    notes = [note for axis in AXES for point in at[axis].values() for note in point.notes]
    notes += few(pairs) + without(pairs, groups) + late(groups, limits)
    notes += [*mixtures(groups), *(f"{run.path}: no finished episode is there; left out" for run in found if run not in scored)]
    alt = f"Probability of improvement with intervals: {'; '.join(said)}. Below, performance profiles."
    last = {(row[0], row[1]): words for pair, row, words in zip(pairs, table.rows, said) if pair.axis == "steps"}
    more = f"; and {len(last) - MOST_SAID} more pairs" if len(last) > MOST_SAID else ""
    sentence = f"{'; '.join([*last.values()][:MOST_SAID])}{more}."  # over all games, where there are several
    return Answer(table, figure, alt, points, list(dict.fromkeys(notes)), sentence)


def incomparable(sides: list[tuple[str, str]], groups: list[Group], at: dict[str, Point]) -> str:
    """Say why no two groups can be compared."""
    games = {label: {group.env for group in groups if group.label == label} for label in labels(groups)}
    names = ", ".join(dict.fromkeys(base for _, base in sides))
    for game in sorted(set().union(*(games[ours] & games[base] for ours, base in sides))):
        return f"{names}: no other group has runs of {game} at {at[game]}; {at[game].notes[-1]}"
    return f"{names}: no other group has runs of the same game; --by tells what makes a group"


def likelier(ours: str, base: str, improvement: Estimate, game: str, at: str) -> str:
    """Say which of the two scores more, how likely that is, and whether it may as well be chance."""
    if improvement.value == 0.5:
        return f"{ours} and {base} score alike, with probability of improvement {show(improvement)} ({game}, {at})"
    if improvement.value < 0.5:
        ours, base = base, ours
        improvement = Estimate(1 - improvement.value, 1 - improvement.high, 1 - improvement.low)
    shown = ": no difference is shown" if improvement.low <= 0.5 <= improvement.high else ""
    if math.isnan(improvement.low):
        shown = ", which with one run may be chance"
    return f"{ours} scores more than {base} with probability {show(improvement)}{shown} ({game}, {at})"


def choose(groups: list[Group], options: Compare) -> list[tuple[str, str]]:
    """Return which labels are compared: (group, base) each. Raises RunError."""
    names = labels(groups)
    if len(names) < 2:
        raise RunError(f"--by {options.by}: all runs are in one group, {names[0]}; two or more groups are expected")
    if options.base and options.base not in names:
        raise RunError(f"--base {options.base}: no such group; one of {', '.join(names)} is expected")
    games = {name: {group.env for group in groups if group.label == name} for name in names}
    alike = [name for name in names if any(games[name] & games[other] for other in names if other != name)] or names
    base = options.base or ("A2C" if "A2C" in alike else alike[0])
    if options.all_pairs:  # the base stands last, as the one that others are compared with
        return list(itertools.combinations([*(name for name in names if name != base), base], 2))
    return [(name, base) for name in names if name != base]


def of_games(ours: str, base: str, axis: str, points: dict[str, Point]) -> list[Pair]:
    """Return two labels in each game that both have runs of, and over those games whose scores can be joined."""
    shared = {game: point for game, point in points.items() if point.groups.get(ours) and point.groups.get(base)}
    known = {game: point for game, point in shared.items() if game in GAMES}
    single = [Pair(ours, base, axis, {game: point}) for game, point in shared.items()]
    return single + [Pair(ours, base, axis, known)] * (len(known) > 1)


def time_to(group: Group, limit: float, axis: str) -> Estimate:
    """Return the median over a group's runs of where the threshold is first reached."""
    return stats.estimate([np.nan_to_num([reached(run, limit, axis) for run in group.runs], nan=np.inf)], stats.middle)


def reached(run: Run, limit: float, axis: str) -> float:
    """Return where a run first reaches the threshold; NaN: it does not."""
    return stats.first_reached(run.scores[axis], run.scores["score"], limit, WINDOW)


# What a reader should know.


def few(pairs: list[Pair]) -> list[str]:
    """Return a note for each pair with so few runs that intervals say little."""
    notes = {}
    for pair in pairs:
        runs = min(len(point.groups[label]) for point in pair.points.values() for label in (pair.ours, pair.base))
        width = "there is no interval" if runs == 1 else "the intervals are too narrow"
        if runs <= FEW:
            notes[pair.ours, pair.base] = f"{runs} run{'s' * (runs > 1)} of a game; {width}"
    return [f"{ours} against {base}: {words}" for (ours, base), words in notes.items()]


def without(pairs: list[Pair], groups: list[Group]) -> list[str]:
    """Return a note for each group that is in no pair, and for games that no score over games has."""
    paired = {label for pair in pairs for label in (pair.ours, pair.base)}
    notes = [
        f"{label}: has no runs of a game in common with the base; left out" for label in labels(groups) if label not in paired
    ]
    unknown = sorted({game for pair in pairs for game in pair.points} - set(GAMES))
    if unknown and any(len(pair.points) > 1 for pair in pairs):
        notes.append(f"{ALL}: without {', '.join(unknown)}, which has no normalised score")
    return notes


def late(groups: list[Group], limits: dict[str, float]) -> list[str]:
    """Return a note for each group with runs that ended before others reached the game's threshold: they might have, too."""
    notes = []
    for game, limit in limits.items():
        mine = [group for group in groups if group.env == game]
        times = {id(run): reached(run, limit, "steps") for group in mine for run in group.runs}
        latest = max((time for time in times.values() if np.isfinite(time)), default=-np.inf)
        for group in mine:
            short = [run for run in group.runs if np.isnan(times[id(run)]) and run.scores["steps"].max() < latest]
            if short:
                ended = f"{len(short)} run{'s' * (len(short) > 1)} below the threshold ended before others reached it"
                notes.append(f"{group.name}: {ended}, and {'count' if len(short) > 1 else 'counts'} as never reaching it")
    return notes


# The figure.


def draw(pairs: list[Pair], table: Table, at: dict[str, Point], order: list[str]):
    rows = list(dict.fromkeys((pair.ours, pair.base, row[2]) for pair, row in zip(pairs, table.rows)))
    heights = [0.34 * len(rows) + 1.3, 3.6]
    figure, (top, bottom) = panels(2, height=sum(heights) / 2, height_ratios=heights)
    points = Table(("panel", "group", "base", "game", "at", "x", "value", "low", "high"))
    for pair, row in zip(pairs, table.rows):
        value, low, high = row[6]
        y = rows.index((pair.ours, pair.base, row[2])) + (-0.13 if pair.axis == "steps" else 0.13)
        hollow = {} if pair.axis == "steps" else {"markerfacecolor": "white"}
        style = {"color": line_style(order.index(pair.ours))["color"], "label": pair.ours, **hollow}
        top.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", capsize=3, markersize=5, **style)
        points.rows.append(("improvement", *row[:4], None, value, low, high))
    top.axvline(0.5, color="#555555", linewidth=1, linestyle=":")
    one = len({base for _, base, _ in rows}) == 1
    names = [f"{ours}" if one else f"{ours} over {base}" for ours, base, _ in rows]
    games = len({game for *_, game in rows}) > 1
    top.set_yticks(
        range(len(rows)), [f"{name}, {game}" if games else name for name, (*_, game) in zip(names, rows)], fontsize=9
    )
    than = f"a run of {rows[0][1]}" if one else "one of the other group"
    top.set(xlim=(-0.03, 1.03), xlabel=f"P(a run scores more than {than})")
    top.set(title="filled: common step, hollow: common hour, bars: 95% interval", ylim=(len(rows) - 0.5, -0.5))
    points.rows += profiles(bottom, pairs, at, order)
    legend(figure, [bottom])
    return figure, points


def profiles(ax, pairs: list[Pair], at: dict[str, Point], order: list[str]) -> list[tuple]:
    """Draw the performance profile of each group over the games that all have at the common step; return the points."""
    compared = [label for label in order if any(label in (pair.ours, pair.base) for pair in pairs)]
    games = [game for game, point in at.items() if all(point.groups.get(label) for label in compared)]
    if len(games) > 1:
        games = [game for game in games if game in GAMES]
    if not games:
        ax.set_axis_off()
        return []
    whole = Pair(compared[0], compared[0], "steps", {game: at[game] for game in games})
    data = [whole.strata(label) for label in compared]
    ends = np.concatenate([np.concatenate(strata) for strata in data])
    margin = 0.05 * max(np.ptp(ends), 1e-3)
    grid = np.linspace(ends.min() - margin, ends.max() + margin, 200)
    rows, joined, where = [], ", ".join(games), "common steps" if len(games) > 1 else str(at[games[0]])
    for label, strata in zip(compared, data):
        share, low, high = stats.profile(strata, grid)
        style = line_style(order.index(label))
        ax.plot(grid, 100 * share, label=label, drawstyle="steps-post", **style)
        ax.fill_between(grid, 100 * low, 100 * high, color=style["color"], alpha=0.15, linewidth=0, step="post")
        rows += [("profile", label, None, joined, where, *point) for point in zip(grid, share, low, high)]
    unit = "normalised score (0 random, 1 human)" if whole.normalise else "score (points)"
    ax.set(title=f"performance profile: {joined}, at {where}", xlabel=f"{unit} x", ylim=(-3, 103))
    ax.set_ylabel("runs that score above x (%)")
    return rows


if __name__ == "__main__":
    main(answer, Compare, __doc__)
