"""The metrics files of one rank, and the one definition of which of their rows count.

A rank's rows lie in parts: rank00007.h5, rank00007-1.h5, ... A part has room for all its rows from the start, and a counter
of those that are written, which is raised after them. A row of a part counts

* if the counter covers it, and it is really there: after a power cut, or on a network file system, the counter may be seen
  before its rows, which then read as zeros;
* unless a later part of the rank supersedes it: all rows of a part are of updates after its `after_update`, and replace such
  rows of earlier parts, because a resume did these updates again;
* unless its agent had left the run: what it did after the update at which the run went on with fewer agents was done again
  without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gala_mpi.run.files import Node, reading
from gala_mpi.run.layout import FORMAT, metrics_files, metrics_files_by_rank
from gala_mpi.run.tables import OPTIONAL, TABLES

# All that h5py raises on files that are damaged, cut short, or something else altogether.
UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError)


@dataclass(frozen=True)
class Part:
    """One metrics file, as it was when it was looked at.

    Attributes:
        after_update: all its rows are of later updates.
        agents: how many the run had then; 0: the file does not say.
        resumed_from: the checkpoint that its start went on from, 0: from scratch; -1: the file does not say.
        rows: table → how many rows were written.
    """

    path: Path
    after_update: int
    agents: int
    resumed_from: int
    rows: dict[str, int]


def open_part(path: Path, report: Callable[[str], None] = lambda problem: None) -> Part:
    """Read the attributes and counters of a metrics file, and no row of it.

    Args:
        report: is told of counters that cannot be right, in one line.

    Raises:
        UNREADABLE: the file is missing, damaged or of another kind.
    """
    with reading(path) as file:
        return _part(file, path, report)


def _part(file: Node, path: Path, report: Callable[[str], None] = lambda problem: None) -> Part:
    check_format(file)
    rows = {}
    for name in TABLES:
        if name in OPTIONAL and name not in file:
            rows[name] = 0
            continue
        counter, room = int(file[f"rows/{name}"][()]), len(file[name])
        rows[name] = min(max(counter, 0), room)
        if rows[name] != counter:
            report(f"{path}: {name} has room for {room:,} rows, the counter says {counter:,}")
    agents, resumed_from = (int(file.attrs.get(name, unknown)) for name, unknown in (("agents", 0), ("resumed_from", -1)))
    return Part(path, int(file.attrs["after_update"]), agents, resumed_from, rows)


def check_format(file: Node) -> None:
    """Raise ValueError for a file that a newer version has written in another format."""
    if file.attrs["format"] != FORMAT:
        raise ValueError(f"format {file.attrs['format']}; {FORMAT} is expected")


def last_updates(parts: Sequence[Part], first: Sequence[Part], rank: int) -> list[float]:
    """Return for each part the last update whose rows count; infinity: all do.

    Args:
        parts: the newest parts of a rank, or all of them, in the order of their writing.
        first: all parts of rank 0, which has a part of every start.
    """
    return [_last_update(part, parts[i + 1 :], first, rank) for i, part in enumerate(parts)]


def _last_update(part: Part, later: Sequence[Part], first: Sequence[Part], rank: int) -> float:
    # The part is of this start of rank 0 or of a later one with the same ranks.
    mine = [i for i, other in enumerate(first) if not 0 < other.agents <= rank and other.after_update <= part.after_update]
    since = first[max(mine, default=-1) + 1 :]
    left = [other.after_update for other in since if 0 < other.agents <= rank and other.after_update >= part.after_update]
    return min([*left, *(other.after_update for other in later)], default=math.inf)


def written_rows(part: Part, table: str, report: Callable[[str], None] = lambda problem: None) -> np.ndarray:
    """Read the rows of a part that are really there: a structured array of dtype TABLES[table].

    Args:
        report: is told where the counter says more than there is, in one line.

    Raises:
        UNREADABLE: the file is damaged.
    """
    if not part.rows[table]:
        return np.empty(0, TABLES[table])
    with reading(part.path) as file:
        rows = with_columns(file[table][: part.rows[table]], table)
    absent = np.flatnonzero(rows["update"] <= part.after_update)
    if len(absent):
        report(f"{part.path}: {table} is read up to row {absent[0]:,}, the counter says {len(rows):,}")
        rows = rows[: absent[0]]
    return rows


def newest_row(part: Part, table: str, last_update: float = math.inf) -> np.ndarray:
    """Read the last row of a part that is there, up to an update, or none: a structured array of dtype TABLES[table].

    Raises:
        UNREADABLE: the file is damaged.
    """
    with reading(part.path) as file:
        return _tail(file, part, table, 1, last_update)


def _tail(file: Node, part: Part, table: str, count: int, last_update: float) -> np.ndarray:
    """Read the last `count` rows of a part that are there, up to an update, and not much more of the file."""
    found: list[np.ndarray] = [np.empty(0, TABLES[table])]
    end, size = part.rows[table], max(count, 16)
    while end > 0 and count > 0:
        begin = max(0, end - size)
        rows = with_columns(file[table][begin:end], table)
        rows = rows[(rows["update"] > part.after_update) & (rows["update"] <= last_update)][-count:]
        found.insert(0, rows)
        count, end, size = count - len(rows), begin, 2 * size
    return np.concatenate(found)


def counted(column: np.ndarray) -> int:
    """Return what a column of whole numbers that begins at 0 at each start has counted over all of them; 0 where it lacks."""
    numbers = np.maximum(column.astype(int), 0)  # -1: the file does not say
    grown = np.diff(numbers, prepend=0)
    return int(np.where(grown < 0, numbers, grown).sum())


def with_columns(rows: np.ndarray, table: str) -> np.ndarray:
    """Return rows with the columns of TABLES[table].

    A column that a file lacks, because an older version wrote it, reads as NaN, or as -1 where it holds whole numbers.
    """
    dtype = TABLES[table]
    if rows.dtype == dtype:
        return rows
    filled = np.empty(len(rows), dtype)
    for name in dtype.names or ():
        absent = np.nan if dtype[name].kind == "f" else -1
        filled[name] = rows[name] if name in (rows.dtype.names or ()) else absent
    return filled


# Runs that others write, or that must be whole.


def read_rows(run: Path, rank: int, table: str) -> np.ndarray:
    """Read all rows of a rank's table that count: a structured array of dtype TABLES[table].

    Raises:
        UNREADABLE: a file is damaged, or there is none.
    """
    parts = [open_part(path) for path in metrics_files(run, rank)]
    ends = last_updates(parts, _readable_parts(metrics_files(run, 0)) if rank else parts, rank)
    tables = [written_rows(part, table) for part in parts]
    return np.concatenate([rows[rows["update"] <= end] for rows, end in zip(tables, ends)])


def _readable_parts(files: Iterable[Path]) -> list[Part]:
    parts = []
    for path in files:
        try:
            parts.append(open_part(path))
        except UNREADABLE:
            continue
    return parts


class NewestRows:
    """The ends of a run's tables as they are now. Large live runs can be watched by them: no more is read than it takes.

    Attributes:
        first: the readable parts of rank 0.
    """

    def __init__(self, run: Path):
        self._files = metrics_files_by_rank(run)
        self.first = _readable_parts(self._files.get(0, {}).values())

    def of(self, rank: int, wanted: Mapping[str, int], beside: Mapping[str, int] = {}) -> dict[str, np.ndarray]:
        """Read the last rows of a rank's tables that count, each a structured array of dtype TABLES[table].

        Args:
            wanted: table → how many rows; there are fewer if no file has more.
            beside: the same of tables for which no further file is opened.

        Raises:
            UNREADABLE: a file is damaged, or there is none.
        """
        files = list(self._files.get(rank, {}).values())
        if not files:
            raise FileNotFoundError(f"rank {rank} has no metrics")
        counts = {**wanted, **beside}
        found = {table: np.empty(0, TABLES[table]) for table in counts}
        parts: list[Part] = []
        for path in reversed(files):
            with reading(path) as file:
                parts.insert(0, _part(file, path))
                last_update = last_updates(parts, self.first, rank)[0]
                for table, count in counts.items():
                    rows = _tail(file, parts[0], table, count - len(found[table]), last_update)
                    found[table] = np.concatenate([rows, found[table]])
            if all(len(found[table]) >= count for table, count in wanted.items()):
                break
        return found


def starting_hours(parts: Sequence[Part]) -> list[float]:
    """Return the training time, in hours, at the first update of each part; NaN for one without updates.

    Raises:
        UNREADABLE: a file is damaged.
    """
    hours = []
    for part in parts:
        with reading(part.path) as file:
            hours.append(float(file["updates"][0]["hours"]) if part.rows["updates"] else math.nan)
    return hours
