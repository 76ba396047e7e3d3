"""What a run left behind, read for the offline analysis: the one file of the analysis that knows the layout on disk.

    from runs import find_runs, open_run

    for path in find_runs(["runs"]):
        run = open_run(path)
        print(run.path, run.config["exchange"], run.config["a2c"]["gae_lambda"], run.state)
        print(run.episodes(0)["score"].mean(), *run.problems)

Needs h5py and numpy alone, so that it runs where nothing of the training is installed.

A run may still be training, or may have been killed, or copied in part. A rank's metrics lie in rank00007.h5,
rank00007-1.h5, ...; each file has room for its rows from the start, a counter says how many are written, and the
counter is raised after the rows. So the counters are read when the run is opened and the rows later: a `Run` is what
the run was at that moment. What cannot be read is left out and told in `Run.problems`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FORMAT = 1
RANK_FILE = re.compile(r"rank(\d{5,})(?:-(\d+))?\.h5")

# The columns, as gala_mpi.metrics writes them (tests/test_analysis.py compares the two). A column that a file lacks,
# because it was written before there was such a column, reads as NaN, or as -1 where the column holds whole numbers.
TABLES = {
    "updates": np.dtype(
        [
            ("update", "<i8"),  # the agent's update counter
            ("steps", "<i8"),  # this agent's steps so far, over all restarts
            ("hours", "<f8"),  # training time of the run so far, over all restarts
            ("policy_loss", "<f4"),
            ("value_loss", "<f4"),
            ("entropy", "<f4"),  # nats
            ("grad_norm", "<f4"),  # before clipping
            ("step_norm", "<f4"),  # length of the optimiser's step, learning rate included
            ("staleness", "<i4"),  # updates since the last mix
            ("age", "<f4"),  # my version minus the version mixed, mean over peers; NaN without a mix
            ("torn", "<i4"),  # messages thrown away since the start: rewritten while they were read
            ("corrupt", "<i4"),  # messages thrown away since the start: wrong checksum
            ("poke_gap", "<f4"),  # longest time without a poke, s
            ("rss", "<f4"),  # resident memory, MiB
            ("cpu", "<f4"),  # processor time since the last update, all threads, s
            ("act", "<f4"),  # from here on: seconds spent in each part of the update
            ("simulate", "<f4"),
            ("learn", "<f4"),
            ("optimise", "<f4"),
            ("exchange", "<f4"),
            ("record", "<f4"),
        ]
    ),
    "episodes": np.dtype(
        [
            ("update", "<i8"),
            ("steps", "<i8"),  # this agent's steps at the end of the update in which the episode ended
            ("hours", "<f8"),
            ("simulator", "<i4"),
            ("length", "<i4"),  # steps
            ("score", "<f4"),  # real, of the whole episode
        ]
    ),
    # Whose version was mixed when, and with which weight.
    "mixes": np.dtype([("update", "<i8"), ("peer", "<i4"), ("version", "<i8"), ("weight", "<f8")]),
    # One random projection for all: distances and angles between vectors are those between their sketches.
    "sketches": np.dtype([("update", "<i8"), ("parameters", "<f4", (4096,)), ("gradient", "<f4", (4096,))]),
    # Of a whole node, written by its first rank; since the row before. NaN: not available.
    "energy": np.dtype(
        [
            ("update", "<i8"),
            ("hours", "<f8"),
            ("seconds", "<f4"),  # that the row covers
            ("cpu_joules", "<f4"),
            ("gpu_joules", "<f4"),
            ("node_joules", "<f4"),
            ("cores_busy", "<f4"),  # share of the node's cores, whoever used them
            ("gpus_busy", "<f4"),  # share of the time, mean over the node's GPUs
        ]
    ),
}
OPTIONAL = {"sketches", "energy"}  # files of older versions lack them

METHODS = {"gossip": "GALA", "allreduce": "A2C", "server": "A3C", "none": "independent"}
ENERGY = {"node_joules": "node", "cpu_joules": "CPU", "gpu_joules": "GPU"}
SCORES = np.dtype([("steps", "<f8"), ("hours", "<f8"), ("kilojoules", "<f8"), ("score", "<f8")])

# All that h5py raises on files that are damaged, cut short, or something else altogether.
UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError)


class RunError(ValueError):
    """There is no run to read; the message is one line."""


@dataclass(frozen=True)
class Part:
    """One metrics file, as it was when the run was opened.

    Attributes:
        after_update: all its rows have update > after_update, and supersede such rows of earlier files.
        agents: how many the run had then; 0: not said, as many as now.
        rows: table → how many rows were written.
    """

    path: Path
    after_update: int
    agents: int
    rows: dict[str, int]


@dataclass(eq=False)
class Run:
    """A run as it was when it was opened.

    Attributes:
        config: its newest settings, as JSON gives them; the learner's are nested under "a2c".
        agents: how many agents, that is ranks, it has; agents that it had before an elastic resume have left.
        starts: facts about each start, oldest first: time, command, hosts, versions, "config", ...
        evaluations: oldest first: (games, facts); games are rows of policy (-1: the averaged one), game, score, length;
            facts are checkpoint, arg_max, seed, time.
        parts: the readable metrics files of each rank, in the order of their writing, of agents that have left too.
        problems: what could not be read, a plain line each. Grows if reading rows brings more to light.
    """

    path: Path
    config: dict[str, Any]
    agents: int
    starts: list[dict[str, Any]]
    evaluations: list[tuple[np.ndarray, dict[str, Any]]] = field(repr=False)
    parts: list[list[Part]] = field(repr=False)
    problems: list[str]

    def updates(self, rank: int) -> np.ndarray:
        """One row an update, in order, of dtype TABLES["updates"]."""
        return self._table(rank, "updates")

    def episodes(self, rank: int) -> np.ndarray:
        """One row a finished episode, in order, of dtype TABLES["episodes"]."""
        return self._table(rank, "episodes")

    def mixes(self, rank: int) -> np.ndarray:
        """One row a message mixed, in order, of dtype TABLES["mixes"]."""
        return self._table(rank, "mixes")

    def sketches(self, rank: int) -> np.ndarray:
        """One row every so many updates, in order, of dtype TABLES["sketches"]; none in runs without."""
        return self._table(rank, "sketches")

    def energy(self, rank: int) -> np.ndarray:
        """One row every few seconds, in order, of dtype TABLES["energy"]; none from ranks that are not a node's first."""
        return self._table(rank, "energy")

    def settings(self) -> dict[str, Any]:
        """All settings by name, the learner's dotted ("a2c.gae_lambda"); and `agents`, `simulators` (of all agents) and
        `method`, the algorithm in a reader's words."""
        c = self.config
        method = METHODS.get(c["exchange"], c["exchange"])
        if c["exchange"] == "gossip":
            method += f" {c['topology'].partition(chr(10))[0]}" + ("" if c["staleness"] is None else f", τ = {c['staleness']}")
        flat = {"method": method, "agents": self.agents, "simulators": self.agents * c["num_envs"]}
        for name, value in c.items():
            flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
        return flat

    @cached_property
    def joules(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Energy that all nodes have used: hours, joules until then, and whose energy that is ("" if it was not measured).

        A node's own counter is taken where there is one, else the sum of what its CPUs and GPUs counted. Unless all nodes
        count the same things, nothing is returned. What a resume repeated is not counted.
        """
        nodes = [table for table in map(self.energy, range(len(self.parts))) if len(table)]
        kinds = {tuple(k for k in ENERGY if np.isfinite(table[k]).all()) for table in nodes}
        kind = ("node_joules",) if all("node_joules" in k for k in kinds) else next(iter(kinds), ())
        if not kinds or not kind or (len(kinds) > 1 and kind != ("node_joules",)):
            return np.zeros(0), np.zeros(0), ""
        hours = np.unique(np.concatenate([table["hours"] for table in nodes]))
        totals = [np.interp(hours, t["hours"], np.cumsum(sum(t[k].astype(float) for k in kind)), left=0) for t in nodes]
        return hours, np.sum(totals, axis=0), " and ".join(ENERGY[k] for k in kind)

    @cached_property
    def scores(self) -> np.ndarray:
        """The finished episodes in the order of time: steps (of all agents), hours, kilojoules (NaN unless measured), score.

        Steps are the agent's at the end of the update in which the episode ended, times the agents that there were then.
        """
        episodes = self.all_episodes()
        episodes = episodes[np.argsort(episodes["hours"], kind="stable")]
        hours, joules, _ = self.joules
        table = np.empty(len(episodes), SCORES)
        table["steps"], table["hours"] = episodes["steps"] * episodes["agents"], episodes["hours"]
        table["kilojoules"] = np.interp(episodes["hours"], hours, joules / 1000) if len(hours) else np.nan
        table["score"] = episodes["score"]
        return table

    def all_episodes(self) -> np.ndarray:
        """The episodes of all ranks, rank by rank, with two more columns: `rank`, and `agents`, how many there were then."""
        tables = []
        for rank in range(len(self.parts)):
            episodes = self.episodes(rank)
            table = np.empty(len(episodes), [("rank", "<i4"), ("agents", "<i4"), *TABLES["episodes"].descr])
            table["rank"], table["agents"] = rank, self.agents_at(rank, episodes["update"])
            for name in episodes.dtype.names:
                table[name] = episodes[name]
            tables.append(table)
        return np.concatenate(tables)

    def agents_at(self, rank: int, updates: np.ndarray) -> np.ndarray:
        """How many agents the run had at these updates of a rank: an elastic resume changes it."""
        agents = np.full(len(updates), self.agents)
        for part in self.parts[rank]:
            agents[updates > part.after_update] = part.agents or self.agents
        return agents

    @cached_property
    def newest(self) -> np.ndarray:
        """The last `updates` row of every rank that has one."""
        return np.concatenate([self.updates(rank)[-1:] for rank in range(self.agents)])

    @property
    def steps(self) -> int:
        """Steps done, over all agents whose metrics can be read."""
        return int(self.newest["steps"].sum())

    @property
    def hours(self) -> float:
        """Training time; 0 before the first update."""
        return float(self.newest["hours"].max(initial=0))

    @property
    def state(self) -> str:
        """How far the run came, and whether metrics are missing, in words: "42% done, metrics of 31 of 32 agents"."""
        c = self.config
        # By steps: the counters of updates go on from elsewhere when the number of agents has changed.
        done = self.newest["steps"].mean() * self.agents / c["total_steps"] if len(self.newest) else 0.0
        readable = sum(map(bool, self.parts[: self.agents]))
        words = "finished" if done >= 1 else f"{math.floor(100 * done)}% done"
        return words if readable == self.agents else f"{words}, metrics of {readable} of {self.agents} agents"

    def _table(self, rank: int, name: str) -> np.ndarray:
        """All rows of a rank that no resume superseded."""
        dtype, parts = TABLES[name], self.parts[rank]
        tables = [np.empty(0, dtype)]
        for i, part in enumerate(parts):
            rows = self._rows(part, name)
            later = [part.after_update for part in parts[i + 1 :]]
            left = [other.after_update for other in self.parts[0] if 0 < other.agents <= rank]
            last = min([*later, *(update for update in left if update > part.after_update)], default=math.inf)
            tables.append(rows[rows["update"] <= last])
        return np.concatenate(tables)

    def _rows(self, part: Part, name: str) -> np.ndarray:
        """The rows of one file."""
        if not part.rows[name]:
            return np.empty(0, TABLES[name])
        try:
            with h5py.File(part.path, "r", locking=False) as file:
                rows = _columns(file[name][: part.rows[name]], TABLES[name])
        except UNREADABLE as error:
            self._report(f"{part.path}: {name} cannot be read ({_line(error)})")
            return np.empty(0, TABLES[name])
        # A power cut, or a network file system, may bring the counter to us without the rows: these read as zeros.
        absent = np.flatnonzero(rows["update"] <= part.after_update)
        if len(absent):
            self._report(f"{part.path}: {name} is read up to row {absent[0]:,}, the counter says {len(rows):,}")
            rows = rows[: absent[0]]
        return rows

    def _report(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The runs at `paths`, each once, in order; a path is a run directory or a folder that holds some at any depth.

    Raises:
        RunError: a path is not there, or there is no run in it.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise RunError(f"{path}: {'a file' if path.exists() else 'nothing'} is there; a run directory is expected")
        inside = _runs_in(path)
        if not inside:
            raise RunError(f"{path}: no run is there (no run.h5); a run directory or a folder of runs is expected")
        found += [run for run in inside if not any(run.samefile(known) for known in found)]
    return found


def _settings(text: str) -> dict[str, Any]:
    """Settings from JSON. A graph is one string, its name and maybe a line break and its text, as in the oldest runs."""
    settings = json.loads(text)
    if isinstance(graph := settings.get("topology"), dict):
        settings["topology"] = "\n".join(filter(None, [graph["name"], graph["text"], " ".join(map(str, graph["nodes"]))]))
    return settings


def open_run(path: str | Path) -> Run:
    """The run in directory `path`, whatever state it is in.

    Raises:
        RunError: there is no run.h5, or it cannot be read.
    """
    path = Path(path)
    if not (path / "run.h5").is_file():
        raise RunError(f"{path}: no run is there (no run.h5); a run directory is expected")
    try:
        with h5py.File(path / "run.h5", "r", locking=False) as file:
            _check_format(file)
            agents = int(file.attrs["agents"])
            config = _settings(file.attrs["config"])
            starts = [_facts(file["starts"][name]) for name in sorted(file["starts"], key=int)]
            starts = [facts | {"config": _settings(facts["config"])} for facts in starts]
            evaluated = file.get("evaluations", {})
            evaluations = [(evaluated[name][:], _facts(evaluated[name])) for name in sorted(evaluated, key=int)]
    except UNREADABLE as error:
        raise RunError(f"{path / 'run.h5'}: cannot be read ({_line(error)})") from None
    problems: list[str] = []
    files = _metrics_files(path / "metrics")
    ranks = range(max([agents - 1, *files]) + 1)
    wanted = [rank < agents or rank in files for rank in ranks]
    parts = [_open_parts(path / "metrics", rank, files.get(rank, {}), problems) if wanted[rank] else [] for rank in ranks]
    return Run(path, config, agents, starts, evaluations, parts, problems)


def _runs_in(folder: Path) -> list[Path]:
    found = []
    for here, folders, files in os.walk(folder):
        folders.sort()
        if "run.h5" in files:
            found.append(Path(here))
            folders.clear()  # a run holds no runs
    return found


def _metrics_files(folder: Path) -> dict[int, dict[int, Path]]:
    """Of each rank: number of the file → path."""
    found: dict[int, dict[int, Path]] = {}
    for path in folder.glob("rank*.h5"):
        if match := RANK_FILE.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2] or 0)] = path
    return found


def _open_parts(folder: Path, rank: int, files: dict[int, Path], problems: list[str]) -> list[Part]:
    """The readable files of one rank in order; what is missing or damaged goes to `problems`."""
    parts = []
    for number in range(max(files, default=0) + 1):
        if number not in files:
            problems.append(f"{folder / f'rank{rank:05d}'}{f'-{number}' if number else ''}.h5: missing")
            continue
        try:
            parts.append(_open_part(files[number], problems))
        except UNREADABLE as error:
            problems.append(f"{files[number]}: cannot be read ({_line(error)})")
    return parts


def _open_part(path: Path, problems: list[str]) -> Part:
    with h5py.File(path, "r", locking=False) as file:
        _check_format(file)
        rows = {}
        for name in TABLES:
            if name in OPTIONAL and name not in file:
                rows[name] = 0
                continue
            counter, room = int(file[f"rows/{name}"][()]), len(file[name])
            rows[name] = min(max(counter, 0), room)
            if rows[name] != counter:
                problems.append(f"{path}: {name} has room for {room:,} rows, the counter says {counter:,}")
        return Part(path, int(file.attrs["after_update"]), int(file.attrs.get("agents", 0)), rows)


def _check_format(file: h5py.File) -> None:
    if file.attrs["format"] != FORMAT:
        raise ValueError(f"format {file.attrs['format']}; {FORMAT} is expected")


def _facts(node: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """The attributes, as plain Python values."""
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in node.attrs.items()}


def _columns(rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`rows` with the columns of `dtype`."""
    if rows.dtype == dtype:
        return rows
    table = np.empty(len(rows), dtype)
    for name in dtype.names:
        absent = np.nan if dtype[name].kind == "f" else -1
        table[name] = rows[name] if name in rows.dtype.names else absent
    return table


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
