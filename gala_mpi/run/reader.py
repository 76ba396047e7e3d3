"""What a run directory says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gala_mpi.config import Config
from gala_mpi.errors import SettingError
from gala_mpi.run.files import reading
from gala_mpi.run.layout import checkpoint_files, lost, metrics_files, run_file


def read_rows(run: Path, rank: int, name: str) -> np.ndarray:
    """All rows of a rank's table that count: those of a later file replace what came after its beginning."""
    rows: list[np.ndarray] = []
    for path in metrics_files(run, rank):
        with reading(path) as file:
            rows = [part[part["update"] <= file.attrs["after_update"]] for part in rows]
            rows.append(file[name][: file[f"rows/{name}"][()]])
    return np.concatenate(rows)


def read_config(run: Path, flag: str = "--run-dir") -> Config:
    """The settings that a run was started (or last resumed) with. `flag` is the one that named the run.

    Raises:
        SettingError: `run` holds no run, or its run.h5 cannot be read.
    """
    if not run_file(run).is_file():
        raise SettingError(f"{flag} {run}: a run is expected there, but it has no run.h5")
    try:
        with reading(run_file(run)) as file:
            return Config.from_json(file.attrs["config"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{flag} {run}: {run_file(run)} cannot be read ({error})") from None


def read_agents(run: Path) -> int:
    """How many agents the run has."""
    with reading(run_file(run)) as file:
        return int(file.attrs["agents"])


def read_starts(run: Path) -> list[dict[str, Any]]:
    """The metadata about every start of the run, oldest first."""
    with reading(run_file(run)) as file:
        return [dict(file["starts"][name].attrs) for name in sorted(file["starts"], key=int)]


def saved_updates(run: Path, number: int) -> dict[int, int]:
    """The update at which each rank saved a number; empty if not all of them have, but for the dead."""
    updates, agents = {}, 0
    for path in checkpoint_files(run, number):
        with reading(path) as file:
            updates[int(path.stem.removeprefix("rank"))] = int(file["learner"].attrs["updates"])
            agents = int(file.attrs["agents"])
    return updates if {*range(agents)} <= {*updates} | lost(run) else {}


def starting_hours(run: Path, rank: int) -> list[float]:
    """The run's training time at the first row of each metrics file of a rank; NaN in one without rows."""
    hours = []
    for path in metrics_files(run, rank):
        with reading(path) as file:
            hours.append(float(file["updates"][0]["hours"]) if file["rows/updates"][()] else np.nan)
    return hours


def newest_rows(run: Path, rank: int, table: str, count: int) -> np.ndarray:
    """The last `count` rows of a rank's table that no resume has superseded; fewer if there are no more."""
    parts, last = [], np.inf
    for path in reversed(metrics_files(run, rank)):
        with reading(path) as file:
            written = int(file[f"rows/{table}"][()])
            rows = file[table][max(0, written - count) if last == np.inf else 0 : written]
            parts.insert(0, rows[rows["update"] <= last])
            last = min(last, file.attrs["after_update"])
        if sum(map(len, parts)) >= count:
            break
    return np.concatenate(parts)[-count:]
