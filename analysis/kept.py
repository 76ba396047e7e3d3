"""The numbers of runs that results/ keeps: runs.csv, a row a run (digest.py), and curves.csv, twenty points of each."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curves import carried

Row = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """The runs of some parts of results/.

    Attributes:
        runs: a row each; all but words are floats.
        curves: of each run, by its environment, method, agents and seed: [20, 3], steps, hours and score.
        names: what methods are called.
    """

    runs: list[Row]
    curves: dict[tuple, np.ndarray]
    names: dict[str, str]

    def where(self, **wanted: Any) -> list[Row]:
        return [run for run in self.runs if all(run[name] == value for name, value in wanted.items())]

    def values(self, name: str) -> list:
        """Return the different values of a column, in order; methods in that of `names`."""
        found = {run[name] for run in self.runs}
        return [key for key in self.names if key in found] if name == "method" else sorted(found)

    @property
    def hours(self) -> float:
        return sum(run["hours"] for run in self.runs)

    def curve(self, run: Row) -> np.ndarray:
        """Return a run's curve, [20, 3]: steps, hours and score."""
        return self.curves[key(run)]


def read(folder: Path, parts: Iterable[str], names: dict[str, str]) -> Kept:
    """Read the runs of some parts; none where there are none."""
    runs, curves = [], {}
    for part in parts:
        runs += [typed(row) for row in rows_of(folder / part / "runs.csv")]
        for row in map(typed, rows_of(folder / part / "curves.csv")):
            curves.setdefault(key(row), []).append((row["steps"], row["hours"], row["score"]))
    return Kept(runs, {name: np.array(points) for name, points in curves.items()}, names)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def typed(row: dict[str, str]) -> Row:
    whole = {"agents", "seed"}
    return {name: int(value) if name in whole else _number(value) for name, value in row.items()}


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def key(row: Row) -> tuple:
    return row["env"], row["method"], row["agents"], row["seed"]


def game(env: str) -> str:
    return env.removeprefix("MinAtar/").removesuffix("-v1")


# Values of runs, in parts of the best run's.


def best(kept: Kept, value: str = "score") -> dict[str, float]:
    """Return the score of each game's best run, or another value of it."""
    return {env: max(finite(kept.where(env=env), value), default=np.nan) for env in kept.values("env")}


def finite(runs: list[Row], name: str) -> list[float]:
    return [run[name] for run in runs if np.isfinite(run[name])]


def strata(kept: Kept, agents: int, methods: Iterable[str], value: str = "score") -> list[list[np.ndarray]]:
    """Return of each method the runs' values, an array a game, of the games that all of them have runs of.

    Scores are divided by that of the game's best run: "score" and "area" by its score in training, "played" by that played.
    """
    by = {"score": "score", "area": "score", "played": "played"}.get(value)
    scale = best(kept, by) if by else dict.fromkeys(kept.values("env"), 1.0)
    found: list[list[np.ndarray]] = [[] for _ in methods]
    for env in kept.values("env"):
        each = [np.array(finite(kept.where(env=env, method=method, agents=agents), value)) for method in methods]
        if all(len(values) for values in each):
            for mine, values in zip(found, each):
                mine.append(values / scale[env])
    return found


def at_hours(curve: np.ndarray, hours: np.ndarray | float) -> np.ndarray:
    """Return at each hour the score of the last twentieth that had ended by then; NaN: no episode had."""
    scores = np.append(np.nan, carried(curve[:, 2]))
    return scores[np.searchsorted(curve[:, 1], np.asarray(hours) * (1 + 1e-9), side="right")]


Timed = list[dict[str, list[tuple[float, np.ndarray]]]]  # of each game, of each method, of each run: hours, and its curve


def timed(kept: Kept, agents: int, methods: Sequence[str], scale: dict[str, float]) -> Timed:
    """Return the hours and curves [20, 3] of the games that all methods have runs of; scores in parts of `scale`'s."""
    games = []
    for env in kept.values("env"):
        runs = {method: kept.where(env=env, method=method, agents=agents) for method in methods}
        if env in scale and all(runs.values()):
            units = np.array([1, 1, scale[env]])
            games.append({m: [(run["hours"], kept.curve(run) / units) for run in each] for m, each in runs.items()})
    return games
