"""Runs for other programs: TensorBoard's event files, and CSV.

    python analysis/export.py runs --to exported                        both
    python analysis/export.py runs --to exported --format csv
    tensorboard --logdir exported                                       every agent is a line

Writes a folder a run and in it one a rank: its tables as CSV, and its columns as scalars against the steps of all agents.
What a column means and its unit stand in docs/metrics.md. TensorBoard's files need the small package tensorboardX.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

import checkout  # noqa: F401
from gala_mpi.run import Run, RunError
from groups import incomplete, load
from script import Table, reader_may_leave, write_csv

AXIS = ("update", "steps", "hours", "simulator")


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


def export(run: Run, folder: Path, format: str) -> list[Path]:
    """Write one run; a folder a rank."""
    folders = []
    for rank in range(run.agents):
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
                write_csv(Table(rows.dtype.names, rows.tolist()), mine / f"{name}.csv")
        if format != "csv":
            scalars(tables, mine, run.steps_of_all(rank, tables["updates"]))
        folders.append(mine)
    return folders


def scalars(tables: dict[str, np.ndarray], folder: Path, run_steps: np.ndarray) -> None:
    """Write one event file; `run_steps`: of all agents at each update. Raises RunError without tensorboardX."""
    try:
        from tensorboardX import SummaryWriter  # only who wants its files needs it
    except ImportError:
        raise RunError("--format tensorboard: tensorboardX is not installed (pip install tensorboardX)") from None
    steps = dict(zip(tables["updates"]["update"].tolist(), run_steps.round().astype(int).tolist()))
    with SummaryWriter(str(folder), write_to_disk=True) as writer:
        for name in ("updates", "episodes", "energy"):
            rows = tables[name]
            for column in rows.dtype.names:
                if column not in AXIS:
                    for update, hours, value in zip(rows["update"].tolist(), rows["hours"].tolist(), rows[column].tolist()):
                        if np.isfinite(value) and update in steps:
                            writer.add_scalar(f"{name}/{column}", value, steps[update], walltime=3600 * hours)


def main(arguments: list[str] | None = None) -> None:
    wanted = tyro.cli(Export, prog="export.py", description=__doc__, args=arguments)
    try:
        found, problems = load(wanted.runs, wanted.where)
        names = [run.path.resolve().name for run in found]
        if len(set(names)) < len(names):
            raise RunError(f"{', '.join(map(str, wanted.runs))}: two runs have one name; --to a folder each")
        for run, name in zip(found, names):
            folders = export(run, wanted.to / name, wanted.format)
            with reader_may_leave():
                print(*folders, sep="\n")
    except (RunError, OSError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for line in [*problems, *incomplete(found)]:
        print(f"note: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
