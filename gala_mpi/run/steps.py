"""How many steps all agents of a run had done at a moment, by the rows of their updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Steps:
    """The count of agents that trained side by side.

    Args:
        tables: rows of `updates` of each agent whose metrics can be read.
        agents: how many there were. Those that cannot be read are taken to have done as much as the others.
    """

    def __init__(self, tables: Sequence[np.ndarray], agents: int):
        begun = [from_its_beginning(table) for table in tables if len(table)]
        self._clock = "update" if in_step(begun) else "hours"
        self._agents = [(table[self._clock], table["steps"]) for table in begun]
        self._scale = agents / max(1, len(tables))

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Return the sum over agents of the steps that each had done at the moment of these rows; float64 [rows].

        Between the ends of two of its updates an agent does steps at one rate. Where agents move in step, the moment is that
        at which all have done the row's update.

        Args:
            rows: of updates, episodes or energy.
        """
        done = [np.interp(rows[self._clock], clock, steps) for clock, steps in self._agents]
        return self._scale * np.sum(done, axis=0) if done else np.zeros(len(rows))


def from_its_beginning(rows: np.ndarray) -> np.ndarray:
    """Return an agent's updates, one row or more, and before them one where the first would have begun if it had been like the
    others. (In its time lies the start of the program.)"""
    begun = np.concatenate([rows[:1], rows])
    for column in ("update", "steps", "hours"):
        grown = np.diff(rows[column])
        grown = grown[grown > 0]  # in several updates on one rollout (--mix-steps) steps grow in the first
        typical = np.median(grown) if len(grown) else 0
        begun[column][0] = max(0, rows[column][0] - typical)
    return begun


def in_step(tables: Sequence[np.ndarray]) -> bool:
    """Return whether no agent has ended an update before all had ended the one before it.

    Args:
        tables: as `from_its_beginning` returns them.
    """
    rows = [table[1:] for table in tables]
    if len({int(table["update"][0]) for table in rows}) != 1:
        return False
    common = min(map(len, rows))
    ended = np.array([table["hours"][:common] for table in rows])
    later = min((table["hours"][common] for table in rows if len(table) > common), default=np.inf)
    return bool((ended.max(axis=0) <= [*ended.min(axis=0)[1:], later]).all())
