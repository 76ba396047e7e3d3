"""How good is each group of runs, game by game and over games and seeds?

    python analysis/aggregates.py runs --by exchange --out aggregates.pdf
    python analysis/aggregates.py runs --at hours

Scores of training, at a step (or hour) that runs of a game have in common. (`scores.py` is about evaluations.)

Definitions (Agarwal et al., NeurIPS 2021; `stats.py` has the formulae, which are those of their library rliable):

{common}
* mean, median: over games, of the mean over a game's runs; the median is of several games only.
* IQM: the interquartile mean over games × seeds.
* optimality gap: by how much normalised scores are below 1, those above it by 0: mean over games of the mean over runs.
* units: points in a row of one game; over all games normalised (0 random, 1 human), the games without a normalised score
  left out. The optimality gap is normalised always.
* intervals: 95% percentile bootstrap, runs resampled within each game (2,000 times). With 3 runs or fewer a game they are too
  narrow, with one there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import checkout  # noqa: F401
import common
import stats
from common import Point
from gala_mpi.run import Run, RunError
from groups import grouped, labels, mixtures
from published import GAMES, normalised
from script import Answer, Options, Table, line_style, main, panels
from stats import Estimate, Strata
from tables import highest, listed, show

ALL = "all games"
SUMMARIES = {"mean": stats.mean, "median": stats.median, "IQM": stats.iqm}
__doc__ = __doc__.format(common=common.__doc__.partition("\n\n")[2].rstrip())


@dataclass(frozen=True)
class Aggregates(Options):
    """How good is each group?"""

    at: Literal["steps", "hours"] = "steps"
    """Compare at a common step or hour."""


@dataclass(frozen=True)
class Row:
    """One group in one game, or over several, at their common steps."""

    label: str
    points: dict[str, Point]  # by game

    @property
    def game(self) -> str:
        return ALL if len(self.points) > 1 else next(iter(self.points))

    @property
    def runs(self) -> int:
        return sum(len(point.groups[self.label]) for point in self.points.values())

    def strata(self, normalise: bool) -> Strata:
        """Return the score of every run: for each game float64 [runs]."""
        values = {game: point.scores(self.label) for game, point in self.points.items()}
        return [normalised(game, value) if normalise else value for game, value in values.items()]

    def summaries(self) -> dict[str, Estimate | None]:
        """Return every summary by its name; None where it says nothing."""
        several = len(self.points) > 1
        scores = self.strata(normalise=several)
        said = {name: stats.estimate(scores, of) if several or name != "median" else None for name, of in SUMMARIES.items()}
        known = set(self.points) <= set(GAMES)
        said["optimality gap"] = stats.estimate(self.strata(normalise=True), stats.optimality_gap) if known else None
        areas = [point.areas(self.label) for point in self.points.values()]
        areas = [normalised(game, area) for game, area in zip(self.points, areas)] if several else areas
        return said | {"area": stats.estimate(areas, stats.mean)}


def answer(found: list[Run], options: Aggregates) -> Answer:
    scored = [run for run in found if len(run.scores)]
    if not scored:
        raise RunError(f"{found[0].path}: no finished episode is there; one or more is expected")
    groups = grouped(scored, options.by, known=found)
    points = common.points(groups, options.at)
    rows = [row for label in labels(groups) for row in of_label(label, points)]
    rows.sort(key=lambda row: (row.game == ALL, row.game))
    said = [row.summaries() for row in rows]
    table = Table(("game", "group", "runs", "at", "scores", *said[0]))
    for row, summaries in zip(rows, said):
        where = f"common {options.at}" if row.game == ALL else str(row.points[row.game])
        unit = "normalised" if row.game == ALL else "points"
        table.rows.append((row.game, row.label, row.runs, where, unit, *summaries.values()))
    words = [
        largest(game, {row.label: summaries["IQM"] for row, summaries in zip(rows, said) if row.game == game})
        for game in games(rows)
    ]
    notes = [note for point in points.values() for note in point.notes] + left_out(rows, points)
    notes += [*mixtures(groups), *(f"{run.path}: no finished episode is there; left out" for run in found if run not in scored)]
    figure = draw(rows, said, labels(grouped(found, options.by)))
    alt = f"Interquartile means and optimality gaps of every group with intervals, a panel each. {'; '.join(words)}."
    return Answer(table, figure, alt, table.flat(), notes, f"{'; '.join(words)}.")


def largest(game: str, means: dict[str, Estimate]) -> str:
    """Say which group has the largest interquartile mean of a game."""
    best, *others = highest({label: mean.value for label, mean in means.items()})
    if others:
        most = f", the largest of {len(means)}" if len(means) > 1 + len(others) else ""
        return f"{game}: {listed([best, *others])} score alike, with an IQM of {show(means[best].value)}{most}"
    what = "the largest IQM," if len(means) > 1 else "an IQM of"
    return f"{game}: {best} has {what} {show(means[best])}"


def of_label(label: str, points: dict[str, Point]) -> list[Row]:
    """Return a group in each of its games, and over those of them whose scores can be joined."""
    mine = {game: point for game, point in points.items() if point.groups.get(label)}
    known = {game: point for game, point in mine.items() if game in GAMES}
    return [Row(label, {game: point}) for game, point in mine.items()] + [Row(label, known)] * (len(known) > 1)


def games(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.game for row in rows))


def left_out(rows: list[Row], points: dict[str, Point]) -> list[str]:
    """Return a note for each group that the rows over all games compare unequally: of fewer games than others, or of none."""
    joined = [row for row in rows if row.game == ALL]
    every = sorted(set().union(*(row.points for row in joined)))
    notes = []
    for label in dict.fromkeys(row.label for row in rows) if joined else ():
        mine = set().union(*(row.points for row in rows if row.label == label))
        if absent := [game for game in every if game not in mine]:
            what = "is over other games than others'" if any(row.label == label for row in joined) else "is not there"
            notes.append(f"{label}: has no runs of {', '.join(absent)}; its row of {ALL} {what}")
    if joined and (unknown := sorted(set(points) - set(GAMES))):
        notes.append(f"{ALL}: without {', '.join(unknown)}, which has no normalised score")
    return notes


def draw(rows: list[Row], said: list[dict[str, Estimate | None]], order: list[str]):
    """Draw a row of panels a game: the summaries, with a point and an interval for each group."""
    names = games(rows)
    shown = [(game, name) for game in names for name in ("IQM", "optimality gap")]
    sizes = [sum(row.game == game for row in rows) for game, _ in shown]
    heights = [0.32 * max(size, 2) + 1.1 for size in sizes[::2]]
    figure, axes = panels(len(shown), sum(heights) / len(heights), columns=2, sharey="row", height_ratios=heights)
    for (game, name), ax in zip(shown, axes):
        mine = [(row, summaries[name]) for row, summaries in zip(rows, said) if row.game == game]
        for y, (row, estimate) in enumerate(mine):
            if estimate:
                value, low, high = estimate
                look = {"color": line_style(order.index(row.label))["color"], "label": row.label}
                ax.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", capsize=3, markersize=5, **look)
        ax.set_yticks(range(len(mine)), [row.label for row, _ in mine], fontsize=9)
        ax.set_ylim(len(mine) - 0.5, -0.5)
        unit = "normalised" if name != "IQM" or game == ALL else "points"
        ax.locator_params(axis="x", nbins=4)
        if name == "optimality gap":
            ax.set_xlim(0, max(1.0, 1.05 * ax.get_xlim()[1]))
        ax.set(title=game, xlabel=f"{name} ({unit})")
        if not any(estimate for _, estimate in mine):
            ax.text(0.5, 0.5, "no normalised score", ha="center", va="center", transform=ax.transAxes, fontsize=9)
            ax.set_xticks([])
    return figure


if __name__ == "__main__":
    main(answer, Aggregates, __doc__)
