"""Where everything lies in a run directory.

run.h5                            settings, versions, hosts, graph; links to the ranks' metrics; evaluations
metrics/rank00007.h5              tables of one rank; rank00007-1.h5 ... follow after a restart or when one is full
checkpoints/000012/rank00007.h5   all state of one rank; a checkpoint is complete when every rank's file is there
ends/rank00007.json               with --survive: how the rank's part ended, once it has
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

FORMAT = 1
RANK_FILE = "rank{:05d}"


def run_file(run: Path) -> Path:
    return run / "run.h5"


def checkpoint_file(run: Path, number: int, rank: int) -> Path:
    return run / "checkpoints" / f"{number:06d}" / f"{RANK_FILE.format(rank)}.h5"


def checkpoint_files(run: Path, number: int) -> list[Path]:
    """The files of one number that are there, in the order of the ranks."""
    return sorted(checkpoint_file(run, number, 0).parent.glob("rank*.h5"))


def remove_leftovers(run: Path) -> None:
    """Delete the temporary files of ranks that were killed. Only where no other start of the run lives."""
    for folder in (run / "metrics", run / "checkpoints"):
        for path in folder.rglob(".*.tmp"):
            path.unlink(missing_ok=True)


def end_file(run: Path, rank: int) -> Path:
    return run / "ends" / f"{RANK_FILE.format(rank)}.json"


def left_file(run: Path, rank: int) -> Path:
    return run / "ends" / f"{RANK_FILE.format(rank)}.left"


def lost(run: Path) -> set[int]:
    """The ranks that have died since the run was last started (`roll.Membership`)."""
    ends = [json.loads(file.read_text()) for file in (run / "ends").glob("rank*.json")]
    return {end["rank"] for end in ends if end["lost"]}


def forget_ends(run: Path) -> None:
    """The run starts anew."""
    shutil.rmtree(run / "ends", ignore_errors=True)


def metrics_files(run: Path, rank: int) -> list[Path]:
    """The metrics files of one rank, in the order of their writing."""
    name = RANK_FILE.format(rank)
    parts = {0: run / "metrics" / f"{name}.h5"}
    parts |= {int(path.stem.split("-")[1]): path for path in (run / "metrics").glob(f"{name}-*.h5")}
    return [parts[part] for part in sorted(parts) if parts[part].exists()]


def next_metrics_file(run: Path, rank: int) -> Path:
    files = metrics_files(run, rank)
    if not files:
        return run / "metrics" / f"{RANK_FILE.format(rank)}.h5"
    part = int(files[-1].stem.partition("-")[2] or 0) + 1
    return run / "metrics" / f"{RANK_FILE.format(rank)}-{part}.h5"
