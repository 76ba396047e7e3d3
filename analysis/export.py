"""Runs for other programs: TensorBoard's event files, and CSV.

    python analysis/export.py runs --to exported                        both
    python analysis/export.py runs --to exported --format csv
    tensorboard --logdir exported                                       every agent is a line

Writes a folder a run, called as the run is (with the folders above it where two runs have one name), and in it one a rank: its
tables as CSV, and its columns as scalars against the steps of all agents. What a column means and its unit stand in
docs/metrics.md. What is there from an earlier export is replaced.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

import checkout  # noqa: F401
from gala_mpi.run import Run, RunError, events
from groups import incomplete, load
from script import Table, print_codes, progress, reader_may_leave, whole, write_csv

AXIS = ("update", "steps", "hours", "simulator")
EVENTS = "events.out.tfevents.0.gala_mpi"
ROWS = 10_000  # at a time


@dataclass(frozen=True)
class Export:
    """Runs for other programs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or folders that hold runs at any depth."""
    to: Path
    """The folder to write to; it is made if need be."""
    where: str = ""
    """Only runs whose settings are so, as for the other scripts: env=pong,seed<3."""
    format: Literal["both", "csv", "tensorboard"] = "both"
    """What is written."""


def folders(found: list[Run]) -> list[Path]:
    """Return a folder for each run: its name; where two have one name, its path from the folder that all have in common."""
    paths = [run.path.resolve() for run in found]
    if len({path.name for path in paths}) == len(paths):
        return [Path(path.name) for path in paths]
    return [path.relative_to(os.path.commonpath(paths)) for path in paths]


def export(run: Run, rank: int, folder: Path, format: str) -> Path:
    """Write one rank of a run; return its folder."""
    mine = folder / f"rank{rank:05d}"
    mine.mkdir(parents=True, exist_ok=True)
    tables = {
        "updates": run.updates(rank),
        "episodes": run.episodes(rank),
        "mixes": run.mixes(rank),
        "energy": run.energy(rank),
    }
    if format != "tensorboard":
        for name, rows in tables.items():
            write_csv(Table(rows.dtype.names, in_parts(rows)), mine / f"{name}.csv")
    if format != "csv":
        write_events(run, rank, {name: tables[name] for name in ("updates", "episodes", "energy")}, mine / EVENTS)
    return mine


def in_parts(rows: np.ndarray) -> Iterator[tuple]:
    """Yield rows as plain Python values; all at once would take ten times the memory."""
    for first in range(0, len(rows), ROWS):
        yield from rows[first : first + ROWS].tolist()


def write_events(run: Run, rank: int, tables: dict[str, np.ndarray], path: Path) -> None:
    """Write one rank's event file; what is no finite number is left out."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        file.write(events.header())
        for name, rows in tables.items():
            steps = run.steps_of_all(rank, rows).round().astype(int)
            for column in rows.dtype.names:
                if column not in AXIS:
                    some = np.isfinite(rows[column])
                    seconds, values = 3600 * rows["hours"][some], rows[column][some]
                    file.writelines(events.scalars(f"{name}/{column}", steps[some], seconds, values))


def main(arguments: list[str] | None = None) -> None:
    print_codes()
    wanted = tyro.cli(Export, prog="export.py", description=__doc__, args=arguments)
    try:
        found, problems = load(wanted.runs, wanted.where)
        ranks = [(run, folder, rank) for run, folder in zip(found, folders(found)) for rank in range(len(run.parts))]
        for run, folder, rank in progress(ranks, "export"):
            written = export(run, rank, wanted.to / folder, wanted.format)
            with reader_may_leave():
                print(written)
    except (RunError, OSError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for line in [*problems, *incomplete(found)]:
        print(f"note: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
