"""Runs of a game at a common step or hour, so that runs that went on longer have no advantage.

* a run's end: the step, or hour, at which its last episode ended.
* common step (and hour) of a game: the end of the shortest finished run. A group of which no run has finished counts with
  its longest run. A run that ends before 0.9 of it is left out there; if one ends between, there is the common step.
* score of a run there: the mean of its last 100 training episodes that had ended by then.
* area: that under the curve of this mean from step (or hour) 0 to the common one, over its length: the score that the run
  had on average on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import checkout  # noqa: F401
import stats
from gala_mpi.run import Run, RunError
from groups import Group

WINDOW = 100  # episodes
NEAR = 0.9
AXES = ("steps", "hours")


@dataclass(frozen=True)
class Point:
    """Where the runs of a game are compared.

    Attributes:
        axis: of AXES.
        x: the common step, or hour.
        groups: label → the runs that have come so far.
        notes: what a reader should know about it, a line each.
    """

    game: str
    axis: str
    x: float
    groups: dict[str, list[Run]]
    notes: list[str]

    def __str__(self) -> str:
        return amount(self.x, self.axis)

    def scores(self, label: str) -> np.ndarray:
        """Return the score there of each run of a group, float64 [runs]."""
        return np.array([self.until(run)[1][-1] for run in self.groups[label]])

    def areas(self, label: str) -> np.ndarray:
        """Return the area of each run of a group, float64 [runs]."""
        return np.array([stats.height(*self.until(run), self.x) for run in self.groups[label]])

    def until(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        """Return where episodes ended, up to the common step, and the mean of the last WINDOW scores at each; (episodes,)."""
        order = np.argsort(run.scores[self.axis], kind="stable")
        x, score = run.scores[self.axis][order], run.scores["score"][order]
        inside = np.count_nonzero(x <= self.x)
        return x[:inside], stats.trailing_mean(score[:inside], WINDOW)


def point(groups: list[Group], axis: str, wanted: float | None = None) -> Point:
    """Return where the runs of one game, in some groups, are compared.

    Args:
        wanted: the step, or hour, instead of the common one.

    Raises:
        RunError: no run has come as far as `wanted`.
    """
    runs = [run for group in groups for run in group.runs]
    ends = {id(run): float(run.scores[axis].max()) for run in runs}
    begins = {id(run): float(run.scores[axis].min()) for run in runs}
    limit = wanted or min(reached(group, ends) for group in groups)
    near = [run for run in runs if ends[id(run)] >= NEAR * limit]
    x = min([limit, *(ends[id(run)] for run in near)])
    there = {id(run) for run in near if begins[id(run)] <= x}
    game, longest = groups[0].env, max(ends.values())
    if not there:
        first = min(begins.values())
        why = f"no run of {game} has come so far; the longest has {amount(longest, axis)}"
        why = f"no episode of {game} has ended there; the first one ends at {amount(first, axis)}" if near else why
        raise RunError(f"--{axis} {wanted:,.6g}: {why}")
    found = Point(game, axis, x, {group.label: [run for run in group.runs if id(run) in there] for group in groups}, [])
    if longest > x / NEAR and not wanted:
        first = min(near, key=lambda run: ends[id(run)])
        found.notes.append(
            f"{game}: compared at {found}, where {first.path} ends; the longest run goes on to {amount(longest, axis)}"
        )
    for run in runs:
        if id(run) not in there:
            late = begins[id(run)] > x
            since = f"from {amount(begins[id(run)], axis)} on" if late else f"up to {amount(ends[id(run)], axis)}"
            found.notes.append(f"{run.path}: has episodes {since} only; left out at {found}")
    return found


def check_place(wanted: float | None, axis: str) -> None:
    """Raise RunError unless a step, or hour, that was asked for is a number above 0."""
    if wanted is not None and not 0 < wanted < np.inf:
        raise RunError(f"--{axis} {wanted}: a number above 0 is expected")


def amount(x: float, axis: str) -> str:
    return f"{x:,.0f} {axis}" if x >= 1000 else f"{x:.4g} {axis}"


def reached(group: Group, ends: dict[int, float]) -> float:
    """Return the end of the group's shortest finished run; of its longest one, if none has finished."""
    finished = [ends[id(run)] for run in group.runs if run.state.startswith("finished")]
    return min(finished) if finished else max(ends[id(run)] for run in group.runs)


def points(groups: list[Group], axis: str, wanted: float | None = None) -> dict[str, Point]:
    """Return where the runs of each game are compared."""
    games = dict.fromkeys(group.env for group in groups)
    return {game: point([group for group in groups if group.env == game], axis, wanted) for game in sorted(games)}
