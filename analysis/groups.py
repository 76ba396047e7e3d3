"""Runs that are compared: opened, and gathered by their settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
from gala_mpi.run import Run, RunError, find_runs, open_run

# Settings that say where and how long, not what was learnt: runs that differ in these alone are repetitions.
INCIDENTAL = {"run_dir", "resume", "replay", "seed", "total_steps", "wall_minutes"}
INCIDENTAL |= {"env_workers", "checkpoint_minutes", "checkpoint_updates", "keep_checkpoints", "sketch_updates"}
SIZE = {"agents", "environments", "num_envs"}
OLD_NAMES = {"simulators": "environments", "sticky": "atari.sticky"}  # of settings, still taken


@dataclass(frozen=True)
class Group:
    """Runs of one env that agree in some settings.

    Attributes:
        label: these settings in words.
    """

    env: str
    label: str
    runs: list[Run]

    @property
    def name(self) -> str:
        return self.env if self.label == self.env else f"{self.env} {self.label}"

    @property
    def counted(self) -> str:
        return f"{self.label} ({len(self.runs)} run{'s' * (len(self.runs) > 1)})"


def load(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Return the runs at `paths`, and a line for each that cannot be opened.

    Raises:
        RunError: nothing is left.
    """
    found, problems = [], []
    for path in find_runs(paths):
        try:
            found.append(open_run(path))
        except RunError as error:
            problems.append(str(error))
    if not found:
        raise RunError(problems[0] + (f" (and {len(problems) - 1} more problems)" if problems[1:] else ""))
    return found, problems


def grouped(found: list[Run], by: str) -> list[Group]:
    """Return the runs that agree in their env and in the settings `by` ("exchange,topology"), ordered by these.

    Raises:
        RunError: there is no such setting.
    """
    known = sorted(set().union(*(run.settings() for run in found)))
    names = [OLD_NAMES.get(name, name) for name in by.replace("-", "_").split(",")]
    for name in names:
        if name not in known:
            raise RunError(f"--by {name}: no such setting; one of {', '.join(known)} is expected")
    groups: dict[tuple, Group] = {}
    for run in found:
        values = [(name, run.settings().get(name)) for name in names]
        env = run.config["env"]
        key = (env, *(_rank(value) for _, value in values))
        label = ", ".join(_describe(name, value) for name, value in values)
        groups.setdefault(key, Group(env, label, [])).runs.append(run)
    return [groups[key] for key in sorted(groups)]


def labels(groups: list[Group]) -> list[str]:
    """Return the labels of all groups, each once: a label's place here is its colour."""
    return list(dict.fromkeys(group.label for group in groups))


def _rank(value: Any) -> tuple[int, Any]:
    """Sort values of a setting: unset, then numbers, then words."""
    return (0, 0) if value is None else (2, value) if isinstance(value, str) else (1, value)


def _describe(name: str, value: Any) -> str:
    # A graph from a file is its name and its whole text.
    return value.partition("\n")[0] if isinstance(value, str) else f"{name} {'unset' if value is None else value}"


def mixtures(groups: list[Group], apart: set[str] = frozenset()) -> list[str]:
    """Return a line for each group whose runs differ in a setting and are no mere repetitions, but for settings in `apart`."""
    lines = []
    for group in groups:
        members = [run.settings() for run in group.runs]
        names = sorted(set().union(*members) - INCIDENTAL - apart)
        differing = [name for name in names if len({repr(member.get(name)) for member in members}) > 1]
        if differing:
            lines.append(f"{group.name}: joins runs that differ in {', '.join(differing)} (--by tells them apart)")
    return lines


def incomplete(found: list[Run]) -> list[str]:
    """Return a line for each run that has not ended, has skipped updates or cannot be read whole. Ask after reading: it brings
    more to light."""
    lines = [f"{run.path}: {run.state}; read as far as it goes" for run in found if run.state != "finished"]
    for run in found:
        agents = ", ".join(f"{number:,} of agent {rank}" for rank, number in run.skipped.items())
        lines += [f"{run.path}: updates skipped because a number was not finite: {agents}"] if agents else []
    return lines + [problem for run in found for problem in run.problems]
