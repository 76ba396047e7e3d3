"""Is one group of runs better than another, and how sure is that?

    python analysis/compare.py runs --by exchange --base allreduce
    python analysis/compare.py runs --threshold pong 15

Compares every group with the base group over the games that both have.

Definitions (Agarwal et al., NeurIPS 2021):

* score of a run: the mean of its last 100 training episodes, normalised (0 random, 1 human) if all games of the two groups
  can be; else as it is, if there is one game only.
* probability of improvement: P(X > Y) + P(X = Y) / 2 for a run X of the group and Y of the base, mean over games. 0.5 says
  nothing; the interval is a 95% percentile bootstrap, runs resampled within each game and group.
* difference: of the interquartile means over games × seeds, group minus base, with the same kind of interval.
* performance profile: the share of runs that score above x; band: pointwise 95% bootstrap interval.
* steps and hours to the threshold: of each run, where the mean of 100 successive training scores first reaches the game's
  threshold; the median over runs, a run that never does counting as infinite ("–": half of the runs or more never do).
  The threshold is --threshold, or as in robustness.py.

With 3 runs or fewer a game, bootstrap intervals are too narrow: they cannot show what no run has shown. With one there is
no interval.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

import checkout  # noqa: F401
import stats
from gala_mpi.run import Run, RunError
from groups import Group, grouped, labels, mixtures
from published import GAMES, normalised
from robustness import WINDOW, final, thresholds
from script import Answer, Options, Table, legend, line_style, main, panels

FEW = 3  # runs


@dataclass(frozen=True)
class Compare(Options):
    """Is one group of runs better than another?"""

    base: str = ""
    """The group that the others are compared with, as the table calls it without the game. Empty: A2C if it is there, else
    the first."""
    threshold: dict[str, float] = field(default_factory=dict)
    """GAME SCORE ...: the score whose steps and hours are asked for, for example pong 15."""


@dataclass(frozen=True)
class Side:
    """One label's runs, by game."""

    label: str
    games: dict[str, list[Run]]

    @property
    def runs(self) -> list[Run]:
        return [run for game in self.games.values() for run in game]


def answer(found: list[Run], options: Compare) -> Answer:
    scored = [run for run in found if len(run.scores)]
    if not scored:
        raise RunError(f"{found[0].path}: no finished episode is there; one or more is expected")
    groups = grouped(scored, options.by)
    sides = [side(label, groups) for label in labels(groups)]
    base = choose(sides, options.base, options.by)
    others = [s for s in sides if s is not base and set(s.games) & set(base.games)]
    if not others:
        raise RunError(f"{base.label}: no other group has runs of the same game; --by tells what makes a group")
    limits = thresholds({group.env for group in groups}, options.threshold)
    table, notes = Table(HEADINGS), []
    for other in others:
        table.rows.append(compare(other, base, limits))
        few = min(len(s.games[game]) for s in (other, base) for game in set(other.games) & set(base.games))
        if few <= FEW:
            width = "there is no interval" if few == 1 else "the intervals are too narrow"
            notes.append(f"{other.label} against {base.label}: {few} run{'s' * (few > 1)} of a game; {width}")
    figure, points = draw(table, [base, *others], [s.label for s in sides])
    said = "; ".join(f"{row[0]} improves on {row[1]} with probability {row[3]:.2f}" for row in table.rows)
    notes += mixtures(groups)
    notes += [f"{run.path}: no finished episode is there; left out" for run in found if run not in scored]
    return Answer(
        table, figure, f"Probability of improvement with intervals: {said}. Below, performance profiles.", points, notes
    )


HEADINGS = ("group", "base", "games", "P(improvement)", "low", "high", "IQM difference", "low ", "high ", "scores")
HEADINGS += ("steps to threshold", "base's steps", "hours to threshold", "base's hours")


def side(label: str, groups: list[Group]) -> Side:
    return Side(label, {group.env: group.runs for group in groups if group.label == label})


def choose(sides: list[Side], wanted: str, by: str) -> Side:
    """Return the base. Raises RunError."""
    if len(sides) < 2:
        raise RunError(f"--by {by}: all runs are in one group, {sides[0].label}; two or more groups are expected")
    named = {s.label: s for s in sides}
    if not wanted:
        return named.get("A2C", sides[0])
    if wanted not in named:
        raise RunError(f"--base {wanted}: no such group; one of {', '.join(named)} is expected")
    return named[wanted]


def strata(ours: Side, games: list[str], normalise: bool) -> list[np.ndarray]:
    """Return the score of every run: for each game float64 [runs]."""
    return [np.array([normalised(game, final(run)) if normalise else final(run) for run in ours.games[game]]) for game in games]


def scale(games: list[str], sides: list[Side]) -> bool:
    """Return whether scores are normalised. Raises RunError where they would have to be and cannot."""
    if unknown := sorted(set(games) - set(GAMES)):
        if len(games) > 1:
            raise RunError(
                f"{sides[0].label}, {sides[1].label}: {', '.join(unknown)} has no normalised score to join with other games"
            )
        return False
    return True


def compare(ours: Side, base: Side, limits: dict[str, float]) -> tuple:
    games = sorted(set(ours.games) & set(base.games))
    normalise = scale(games, [ours, base])
    x, y = strata(ours, games, normalise), strata(base, games, normalise)
    improvement, gap = stats.probability_of_improvement(x, y), stats.difference(x, y, stats.iqm)
    times = [median_time(s, games, limits, axis) for axis in ("steps", "hours") for s in (ours, base)]
    kind = "normalised" if normalise else "points"
    return (ours.label, base.label, ", ".join(games), *improvement, *gap, kind, *times)


def median_time(ours: Side, games: list[str], limits: dict[str, float], axis: str) -> float:
    """Return the median over runs of where the threshold is first reached; inf: too few reach it; NaN: there is none."""
    runs = [(run, limits[game]) for game in games if game in limits for run in ours.games[game]]
    reached = [stats.first_reached(run.scores[axis], run.scores["score"], limit, WINDOW) for run, limit in runs]
    return float(np.median(np.nan_to_num(reached, nan=np.inf))) if reached else np.nan


def draw(table: Table, sides: list[Side], order: list[str]):
    heights = [0.4 * len(table.rows) + 1.2, 3.6]
    figure, (top, bottom) = panels(2, height=sum(heights) / 2, height_ratios=heights)
    for y, (label, _, _, value, low, high, *_) in enumerate(table.rows):
        top.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", capsize=4, **line_style(order.index(label)))
    top.axvline(0.5, color="black", linewidth=1, linestyle=":")
    top.set_yticks(range(len(table.rows)), [row[0] for row in table.rows])
    top.set(xlim=(-0.03, 1.03), xlabel=f"P(a run scores more than a run of {table.rows[0][1]}), 95% bootstrap interval")
    top.set_ylim(len(table.rows) - 0.5, -0.5)
    games = sorted(set.intersection(*(set(s.games) for s in sides)))
    points = Table(("group", "score", "share", "low", "high"))
    if not games:
        bottom.set_axis_off()
        return figure, points
    normalise = scale(games, sides)
    data = [strata(s, games, normalise) for s in sides]
    ends = np.concatenate([np.concatenate(d) for d in data])
    margin = 0.05 * max(np.ptp(ends), 1e-3)
    grid = np.linspace(ends.min() - margin, ends.max() + margin, 200)
    for s, d in zip(sides, data):
        share, low, high = stats.profile(d, grid)
        bottom.plot(grid, 100 * share, label=s.label, drawstyle="steps-post", **line_style(order.index(s.label)))
        bottom.fill_between(
            grid, 100 * low, 100 * high, color=line_style(order.index(s.label))["color"], alpha=0.15, linewidth=0, step="post"
        )
        points.rows += [(s.label, *point) for point in zip(grid, share, low, high)]
    unit = "normalised score (0 random, 1 human)" if normalise else "score (points)"
    bottom.set(
        title=f"performance profile: {', '.join(games)}",
        xlabel=f"{unit} x",
        ylabel="runs that score above x (%)",
        ylim=(-3, 103),
    )
    legend(figure, [bottom])
    return figure, points


if __name__ == "__main__":
    main(answer, Compare, __doc__)
