"""Which start of a run wrote which metrics file, and when it went on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gala_mpi.run.parts import UNREADABLE, Part, newest_row, starting_hours
from gala_mpi.run.tables import TABLES


def starts_of(parts: Sequence[Part], checkpoints: Sequence[int]) -> list[int]:
    """Return of each part of a rank the number of the start that wrote it.

    Of several starts that went on from one checkpoint the newest counts: its rows replace those of the others. Files of older
    versions do not say from which checkpoint: they are taken to be of the newest starts, one of each.

    Args:
        parts: in the order of their writing.
        checkpoints: that each start went on from; 0: from scratch.
    """
    if len(parts) == len(checkpoints) and all(part.resumed_from in (-1, c) for part, c in zip(parts, checkpoints)):
        return list(range(len(parts)))
    newest = {checkpoint: number for number, checkpoint in enumerate(checkpoints)}
    shift = len(checkpoints) - len(parts)
    return [newest.get(part.resumed_from, max(0, i + shift)) for i, part in enumerate(parts)]


def ranks_of(start: int, starts: Sequence[Sequence[int]], agents: int) -> list[int]:
    """Return the ranks below `agents` that have a part of a start; `starts`: the start that each part is of, for each rank."""
    return [rank for rank, mine in enumerate(starts[:agents]) if start in mine]


def leading_parts(parts: Sequence[Sequence[Part]], starts: Sequence[Sequence[int]]) -> list[tuple[int, Part]]:
    """Return each start that has parts with those of the lowest rank that has some of it, in order."""
    found: dict[int, list[Part]] = {}
    for mine, numbers in zip(parts, starts):
        new = set(numbers) - found.keys()
        for part, start in zip(mine, numbers):
            if start in new:
                found.setdefault(start, []).append(part)
    return [(start, part) for start in sorted(found) for part in found[start]]


def agents_after(
    parts: Sequence[Sequence[Part]], starts: Sequence[Sequence[int]], agents: int
) -> list[tuple[int, int, list[int]]]:
    """Return (update, how many agents the run had after it, the ranks of those that can be read), in order, where these change.

    Args:
        parts: of each rank.
        starts: the start that each of them is of.
        agents: how many there were where the files do not say.
    """
    changes: list[tuple[int, int, list[int]]] = []
    for start, part in leading_parts(parts, starts):
        number = part.agents or agents
        since = number, ranks_of(start, starts, number)
        while changes and changes[-1][0] >= part.after_update:
            changes.pop()
        if not changes or changes[-1][1:] != since:
            changes.append((part.after_update, *since))
    return changes or [(0, agents, [])]


def hours_behind(parts: Sequence[Sequence[Part]], starts: Sequence[Sequence[int]]) -> dict[tuple[int, int], float]:
    """Return (rank, start) → hours by which the rank's clock went on behind that of the run; others were in time.

    A rank that had been lost goes on from its own last checkpoint, and older versions set its clock to the time of that.

    Args:
        parts: of each rank.
        starts: the start that each of them is of.
    """
    saved: dict[
        int, dict[int, tuple[float, float]]
    ] = {}  # start → rank → when it saved what it went on from, and its first row
    for rank, mine in enumerate(parts):
        for i in range(1, len(mine)):
            if starts[rank][i] == starts[rank][i - 1] or mine[i].resumed_from <= 0:
                continue
            try:
                row = _row_at(mine[:i], mine[i].after_update)
                if len(row) and mine[i].rows["updates"]:
                    when = (float(row["hours"][0]), starting_hours(mine[i : i + 1])[0])
                    saved.setdefault(starts[rank][i], {})[rank] = when
            except UNREADABLE:  # told where rows are read
                continue
    behind = {}
    for start, ranks in saved.items():
        began = max(when for when, _ in ranks.values())
        behind |= {(rank, start): began - when for rank, (when, first) in ranks.items() if first < began}
    return behind


def _row_at(parts: Sequence[Part], update: int) -> np.ndarray:
    """Return the row of an update, of the newest of these parts that has it, or none."""
    for part in reversed(parts):
        row = newest_row(part, "updates", update)
        if len(row):
            return row if row["update"][0] == update else row[:0]
    return np.empty(0, TABLES["updates"])
