"""Where everything lies in a run directory.

run.h5                            settings, metadata about every start, links to the ranks' metrics, evaluations
metrics/rank00007.h5              tables of one rank; rank00007-1.h5 ... follow after a resume or when one is full
checkpoints/000012/rank00007.h5   all state of one rank; a checkpoint is complete when every rank's file is there
ends/rank00007.json               with --survive: how the rank's part ended, once it has
films/000012.gif                  with --evaluate-minutes and --log: of a checkpoint's evaluation, until it is in the logs
.lock                             the job that trains in it (`lock.py`)
.run.h5.lock                      locked by who changes run.h5 (`files.revised`)
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from gala_mpi.errors import DiskError

FORMAT = 1
RANK_FILE = "rank{:05d}"
METRICS_FILE = re.compile(r"rank(\d{5,})(?:-(\d+))?\.h5")


def run_file(run: Path) -> Path:
    return run / "run.h5"


def is_run(run: Path) -> bool:
    """Return whether a run has begun in this directory, as far as one can see."""
    return os.path.isfile(run_file(run))  # pathlib's raises where a folder may not be entered, or a name is too long


def require_there(run: Path) -> None:
    """Refuse to go on without the run's directory.

    Raises:
        DiskError: it has been deleted or moved.
    """
    if not is_run(run):
        raise DiskError(f"{run_file(run)} is gone: the run directory has been deleted or moved while the run goes on")


def checkpoint_file(run: Path, number: int, rank: int) -> Path:
    return run / "checkpoints" / f"{number:06d}" / f"{RANK_FILE.format(rank)}.h5"


def checkpoint_files(run: Path, number: int) -> list[Path]:
    """Return the files of one checkpoint that are there, in the order of the ranks."""
    return sorted(checkpoint_file(run, number, 0).parent.glob("rank*.h5"))


def remove_leftovers(run: Path) -> None:
    """Delete the temporary files of killed ranks. Call it only while no other start of the run lives."""
    for folder in (run / "metrics", run / "checkpoints"):
        for path in folder.rglob(".*.tmp"):
            path.unlink(missing_ok=True)
    shutil.rmtree(films(run), ignore_errors=True)


def evaluation_mark(run: Path, number: int) -> Path:
    """Return the file that is in a checkpoint's folder while it is evaluated. By its name it is still being written, and a
    checkpoint that has such a file is not deleted."""
    return checkpoint_file(run, number, 0).with_name(".evaluation.tmp")


def films(run: Path) -> Path:
    """Return the folder of films on their way from evaluations to logs."""
    return run / "films"


def film_file(run: Path, number: int) -> Path:
    return films(run) / f"{number:06d}.gif"


def end_file(run: Path, rank: int) -> Path:
    return run / "ends" / f"{RANK_FILE.format(rank)}.json"


def left_file(run: Path, rank: int) -> Path:
    return run / "ends" / f"{RANK_FILE.format(rank)}.left"


def lost(run: Path) -> set[int]:
    """Return the ranks that have died since the run was last started (see `job.membership`)."""
    ranks = set()
    for file in (run / "ends").glob("rank*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):  # damaged: of that rank nothing is known
            end = json.loads(file.read_text())
            ranks |= {end["rank"]} if end["lost"] else set()
    return ranks


def forget_ends(run: Path) -> None:
    """Delete what is known of how ranks ended: the run starts again."""
    shutil.rmtree(run / "ends", ignore_errors=True)


def metrics_file(run: Path, rank: int, part: int = 0) -> Path:
    return run / "metrics" / f"{RANK_FILE.format(rank)}{f'-{part}' if part else ''}.h5"


def metrics_files_by_rank(run: Path) -> dict[int, dict[int, Path]]:
    """Return the metrics files that are there: rank → number of the part → file, parts in the order of their writing."""
    found: dict[int, dict[int, Path]] = {}
    for path in (run / "metrics").glob("rank*.h5"):
        if match := METRICS_FILE.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2] or 0)] = path
    return {rank: dict(sorted(parts.items())) for rank, parts in sorted(found.items())}


def metrics_files(run: Path, rank: int) -> list[Path]:
    """Return the metrics files of one rank, in the order of their writing."""
    return list(metrics_files_by_rank(run).get(rank, {}).values())


def next_metrics_file(run: Path, rank: int) -> Path:
    """Return the name of the file in which a rank goes on."""
    parts = metrics_files_by_rank(run).get(rank, {})
    return metrics_file(run, rank, max(parts) + 1 if parts else 0)
