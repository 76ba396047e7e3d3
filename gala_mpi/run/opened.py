"""A run as it was when it was opened: settings, metadata, tables of every rank, and what follows from them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gala_mpi.config import Config, with_new_names
from gala_mpi.exchange import EXCHANGES
from gala_mpi.run.parts import UNREADABLE, Part, counted, last_updates, newest_row, written_rows
from gala_mpi.run.tables import TABLES
from gala_mpi.topology import Graph

DEFAULTS: dict[str, Any] = json.loads(Config().to_json())  # of settings that an older version did not have
ENERGY = {"node_joules": "node", "cpu_joules": "CPU", "gpu_joules": "GPU"}
SCORES = np.dtype([("steps", "<f8"), ("hours", "<f8"), ("kilojoules", "<f8"), ("score", "<f8")])


@dataclass(eq=False)
class Run:
    """A run as it was when it was opened (`open_run`).

    The counters of rows were read then, and the rows are read when they are asked for. What cannot be read is left out and
    told in `problems`.

    Attributes:
        config: its newest settings, as JSON gives them; the learner's are nested under its name.
        agents: how many agents, that is ranks, it has; agents that it had before an elastic resume have left.
        starts: metadata about each start, oldest first: time, command, hosts, versions, "config", ...
        evaluations: oldest first: (episodes, metadata). Episodes are rows of policy (-1: the averaged one), game (the number of
            the episode), score, length; metadata are checkpoint, arg_max, seed, max_steps, cut, time.
        parts: the readable metrics files of each rank, in the order of their writing, of agents that have left too.
        problems: what could not be read, a plain line each. It grows if reading rows brings more to light.
    """

    path: Path
    config: dict[str, Any]
    agents: int
    starts: list[dict[str, Any]]
    evaluations: list[tuple[np.ndarray, dict[str, Any]]] = field(repr=False)
    parts: list[list[Part]] = field(repr=False)
    problems: list[str]

    def updates(self, rank: int) -> np.ndarray:
        """Return one row an update, in order, of dtype TABLES["updates"]."""
        return self._table(rank, "updates")

    def episodes(self, rank: int) -> np.ndarray:
        """Return one row a finished episode, in order, of dtype TABLES["episodes"]."""
        return self._table(rank, "episodes")

    def mixes(self, rank: int) -> np.ndarray:
        """Return one row a message mixed, in order, of dtype TABLES["mixes"]."""
        return self._table(rank, "mixes")

    def sketches(self, rank: int) -> np.ndarray:
        """Return one row every so many updates, in order, of dtype TABLES["sketches"]; none in runs without."""
        return self._table(rank, "sketches")

    def energy(self, rank: int) -> np.ndarray:
        """Return one row every few seconds, in order, of dtype TABLES["energy"]; none of ranks that are not a node's first."""
        return self._table(rank, "energy")

    def settings(self) -> dict[str, Any]:
        """Return all settings by name, the learner's dotted ("a2c.gae_lambda"), and some that follow from them.

        These are `agents`, `environments` (of all agents) and `method`, the algorithm in a reader's words. A graph is one
        string: its name, and after a line break its text, if it is not a built-in one.
        """
        c = DEFAULTS | with_new_names(self.config) | {"topology": _graph(self.config["topology"])}
        member = EXCHANGES.get(c["exchange"])
        method = member.label(c | {"topology": c["topology"].partition("\n")[0]}) if member else c["exchange"]
        flat = {"method": method, "agents": self.agents, "environments": self.agents * c["num_envs"]}
        for name, value in c.items():
            flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
        return {name: " ".join(value) if isinstance(value, (list, tuple)) else value for name, value in flat.items()}

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

        Steps are those at the end of the update in which the episode ended (see `run_steps`).
        """
        episodes = self.all_episodes()
        episodes = episodes[np.argsort(episodes["hours"], kind="stable")]
        hours, joules, _ = self.joules
        table = np.empty(len(episodes), SCORES)
        table["steps"], table["hours"] = run_steps(episodes, episodes["agents"]), episodes["hours"]
        table["kilojoules"] = np.interp(episodes["hours"], hours, joules / 1000) if len(hours) else np.nan
        table["score"] = episodes["score"]
        return table

    def all_episodes(self) -> np.ndarray:
        """Return the episodes of all ranks, rank by rank, with two more columns: `rank`, and `agents`, how many there were."""
        tables = []
        for rank in range(len(self.parts)):
            episodes = self.episodes(rank)
            table = np.empty(len(episodes), [("rank", "<i4"), ("agents", "<i4"), *TABLES["episodes"].descr])
            table["rank"], table["agents"] = rank, self.agents_at(rank, episodes["update"])
            for name in episodes.dtype.names or ():
                table[name] = episodes[name]
            tables.append(table)
        return np.concatenate(tables)

    def agents_at(self, rank: int, updates: np.ndarray) -> np.ndarray:
        """Return how many agents the run had at these updates of a rank: an elastic resume changes it."""
        agents = np.full(len(updates), self.agents)
        for part in self.parts[rank]:
            agents[updates > part.after_update] = part.agents or self.agents
        return agents

    @cached_property
    def newest(self) -> np.ndarray:
        """The last `updates` row of every rank that has one."""
        return np.concatenate([self._newest(rank) for rank in range(self.agents)])

    @property
    def steps(self) -> int:
        """Steps done, over all agents whose metrics can be read."""
        return int(self.newest["steps"].sum())

    @property
    def skipped(self) -> dict[int, int]:
        """Return of every agent that has skipped updates, because a number in them was not finite, how many: by rank."""
        skipped = {rank: counted(self.updates(rank)["skipped"]) for rank in range(self.agents)}
        return {rank: number for rank, number in skipped.items() if number}

    @property
    def hours(self) -> float:
        """Training time in hours; 0 before the first update."""
        return float(self.newest["hours"].max(initial=0))

    @property
    def state(self) -> str:
        """How far the run came, and whether metrics are missing, in words: "42% done, metrics of 31 of 32 agents"."""
        readable = sum(map(bool, self.parts[: self.agents]))
        share = share_done(self.steps, readable, self.agents, self.config["total_steps"])
        words = "finished" if share >= 1 else f"{math.floor(100 * share)}% done"
        return words if readable == self.agents else f"{words}, metrics of {readable} of {self.agents} agents"

    def _table(self, rank: int, name: str) -> np.ndarray:
        """Read all rows of a rank that count."""
        tables = [np.empty(0, TABLES[name])]
        for part, end in zip(self.parts[rank], last_updates(self.parts[rank], self.parts[0], rank)):
            try:
                rows = written_rows(part, name, self._report)
                tables.append(rows[rows["update"] <= end])
            except UNREADABLE as error:
                self._report(f"{part.path}: {name} cannot be read ({one_line(error)})")
        return np.concatenate(tables)

    def _newest(self, rank: int) -> np.ndarray:
        """Read the last `updates` row of a rank, or none."""
        ends = last_updates(self.parts[rank], self.parts[0], rank)
        for part, end in reversed(list(zip(self.parts[rank], ends))):
            try:
                if len(rows := newest_row(part, "updates", end)):
                    return rows
            except UNREADABLE as error:
                self._report(f"{part.path}: updates cannot be read ({one_line(error)})")
        return np.empty(0, TABLES["updates"])

    def _report(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def run_steps(rows: np.ndarray, agents: np.ndarray) -> np.ndarray:
    """Return the steps of all agents at rows of updates or episodes, int64 [rows], as far as the rows' agent had heard.

    Older runs have not recorded them: there they are the agent's own, times the agents that there were then.
    """
    return np.where(rows["run_steps"] >= 0, rows["run_steps"], rows["steps"] * agents)


def share_done(steps: int, readable: int, agents: int, total_steps: int) -> float:
    """Return how much of a run is done; 1 or more: it is finished.

    By steps: the counters of updates go on from elsewhere when the number of agents has changed.

    Args:
        steps: of the agents whose metrics can be read; the others are taken to be as far as these.
        readable: how many these are.
        agents: how many the run has.
        total_steps: that all agents have to do.
    """
    return steps / readable * agents / total_steps if readable else 0.0


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _graph(stored: str | dict[str, Any]) -> str:
    """Return a graph of the settings as one string: its name, and after a line break its text or the node of each agent."""
    graph = Graph.from_stored(stored)
    more = graph.text or " ".join(map(str, graph.nodes))
    return f"{graph.name}\n{more}" if more else graph.name
