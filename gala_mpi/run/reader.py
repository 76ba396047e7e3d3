"""Reading run directories in any state: runs that train, were killed, were copied in part, or come from an older version.

* `open_run` and `find_runs` leave out what cannot be read and say so: for the analysis and for notebooks.
* `read_config`, `read_agents`, `read_starts` and `read_rows` raise, for a start that rests on what it reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gala_mpi.config import Config
from gala_mpi.errors import RunError, SettingError
from gala_mpi.run import layout
from gala_mpi.run.files import Node, reading
from gala_mpi.run.opened import Run, one_line
from gala_mpi.run.parts import UNREADABLE, Part, check_format, open_part, read_rows

NEEDED = ("env", "exchange", "topology", "total_steps", "num_envs", "rollout_length")  # settings, of every version

__all__ = ["Run", "RunError", "find_runs", "open_run", "read_agents", "read_config", "read_rows", "read_starts"]


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the runs at `paths`, each once, in order. A path is a run directory or a folder that holds some at any depth.

    Raises:
        RunError: a path is not there, or there is no run in it.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not os.path.isdir(path):
            raise RunError(f"{path}: {'a file' if os.path.exists(path) else 'nothing'} is there; a run directory is expected")
        inside = _runs_in(path)
        if not inside:
            raise RunError(f"{path}: no run is there (no run.h5); a run directory or a folder of runs is expected")
        found += [run for run in inside if not any(run.samefile(known) for known in found)]
    return found


def _runs_in(folder: Path) -> list[Path]:
    found = []
    for here, folders, files in os.walk(folder):
        folders.sort()
        if layout.run_file(folder).name in files:
            found.append(Path(here))
            folders.clear()  # a run holds no runs
    return found


def open_run(path: str | Path) -> Run:
    """Open the run in directory `path`, whatever state it is in. No row is read yet.

    Raises:
        RunError: there is no run.h5, or it cannot be read.
    """
    path = Path(path)
    if not layout.is_run(path):
        raise RunError(f"{path}: no run is there (no run.h5); a run directory is expected")
    try:
        with reading(layout.run_file(path)) as file:
            check_format(file)
            agents = int(file.attrs["agents"])
            at_least_one("agents", agents)
            config = _settings(file.attrs["config"])
            starts = [{**start, "config": _settings(start["config"])} for start in _starts(file)]
            at_least_one("starts", len(starts))
            evaluated = file.get("evaluations", {})
            evaluations = [(evaluated[name][:], _metadata(evaluated[name])) for name in sorted(evaluated, key=int)]
            for episodes, _ in evaluations:
                if not {"policy", "score"} <= {*(episodes.dtype.names or ())}:
                    raise ValueError(f"an evaluation has columns {episodes.dtype.names}; policy and score are expected")
    except UNREADABLE as error:
        raise RunError(f"{layout.run_file(path)}: cannot be read ({one_line(error)})") from None
    problems: list[str] = []
    files = layout.metrics_files_by_rank(path)
    ranks = range(max([agents - 1, *files]) + 1)
    wanted = [rank < agents or rank in files for rank in ranks]
    parts = [_open_parts(path, rank, files.get(rank, {}), problems) if wanted[rank] else [] for rank in ranks]
    run = Run(path, config, agents, starts, evaluations, parts, problems)
    problems += _lost_newest(run, files)
    return run


def _settings(text: str) -> dict[str, Any]:
    """Return the settings that a run has stored. Raises KeyError, TypeError or ValueError where others are no use."""
    settings = dict(json.loads(text))
    for name in NEEDED:
        if name not in settings:
            raise ValueError(f"its settings lack {name}")
    for name in ("total_steps", "num_envs", "rollout_length"):
        at_least_one(name, settings[name])
    return settings


def at_least_one(name: str, number: Any) -> None:
    if not (isinstance(number, int) and number >= 1):
        raise ValueError(f"{name} {number}; a number of 1 or more is expected")


def _open_parts(run: Path, rank: int, files: dict[int, Path], problems: list[str]) -> list[Part]:
    """Open the readable files of one rank in order; what is missing or damaged goes to `problems`."""
    parts = []
    for number in range(max(files, default=0) + 1):
        if number not in files:
            problems.append(f"{layout.metrics_file(run, rank, number)}: missing")
            continue
        try:
            parts.append(open_part(files[number], problems.append))
        except UNREADABLE as error:
            problems.append(f"{files[number]}: cannot be read ({one_line(error)})")
    return parts


def _lost_newest(run: Run, files: dict[int, dict[int, Path]]) -> list[str]:
    """Return a line for each file that a rank lacks after its newest one, though others have one of that start."""
    agents = [part.agents for part in run.leading_parts]
    lines = []
    for rank in range(len(run.parts)):
        written = sum(rank < number for number in agents)  # a file in each start of which it was
        for number in range(max(files.get(rank, {}), default=0) + 1, written):
            lines.append(f"{layout.metrics_file(run.path, rank, number)}: missing")
    return lines


# run.h5, for a start that rests on what it says.


def read_config(run: Path, flag: str = "--run-dir") -> Config:
    """Return the settings that a run was started (or last resumed) with.

    Args:
        flag: the one that named the run, for the error.

    Raises:
        SettingError: `run` holds no run, or its run.h5 cannot be read.
    """
    if not layout.is_run(run):
        raise SettingError(f"{flag} {run}: a run is expected there, but it has no run.h5")
    try:
        with reading(layout.run_file(run)) as file:
            return Config.from_json(file.attrs["config"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{flag} {run}: {layout.run_file(run)} cannot be read ({error})") from None


def read_agents(run: Path) -> int:
    """Return how many agents the run has."""
    with reading(layout.run_file(run)) as file:
        return int(file.attrs["agents"])


def read_starts(run: Path) -> list[dict[str, Any]]:
    """Return the metadata about every start of the run, oldest first, as plain values; `config` is JSON."""
    with reading(layout.run_file(run)) as file:
        return _starts(file)


def _starts(file: Node) -> list[dict[str, Any]]:
    return [_metadata(file["starts"][name]) for name in sorted(file["starts"], key=int)]


def _metadata(node: Node) -> dict[str, Any]:
    """Return the attributes, as plain Python values."""
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in node.attrs.items()}
