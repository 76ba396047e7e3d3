"""A run as it was when it was opened: settings, metadata, tables of every rank, and what follows from them."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from gala_mpi.config import Config, with_new_names
from gala_mpi.exchange import EXCHANGES
from gala_mpi.run import layout
from gala_mpi.run.energy import COUNTERS, Node, counters, metered, power
from gala_mpi.run.parts import UNREADABLE, Part, counted, last_updates, newest_row, written_rows
from gala_mpi.run.starts import agents_after, hours_behind, leading_parts, ranks_of, starts_of
from gala_mpi.run.steps import Steps
from gala_mpi.run.tables import SECONDS_BETWEEN_WRITES, TABLES
from gala_mpi.topology import Graph

DEFAULTS: dict[str, Any] = json.loads(Config().to_json())  # of settings that an older version did not have
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
        kept: the starts of which rows are read (`during`).
    """

    path: Path
    config: dict[str, Any]
    agents: int
    starts: list[dict[str, Any]]
    evaluations: list[tuple[np.ndarray, dict[str, Any]]] = field(repr=False)
    parts: list[list[Part]] = field(repr=False)
    problems: list[str]
    kept: range = range(sys.maxsize)

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

        A node's own counter is taken where all have one, else the sum of what its CPUs and GPUs counted. Nothing is returned
        unless all nodes, of all starts, count the same things. What a resume repeated is not counted.
        """
        starts, whose = self._energy
        nodes = [node for nodes in starts for node in nodes]
        if not nodes:
            return np.zeros(0), np.zeros(0), ""
        hours = np.unique(np.concatenate([node.hours for node in nodes]))
        return hours, np.sum([np.interp(hours, node.hours, node.joules) for node in nodes], axis=0), whose

    @property
    def watts(self) -> float:
        """Power of all nodes, mean over the time for which they told; NaN: not available."""
        return power(self._energy[0])

    @cached_property
    def _energy(self) -> tuple[list[list[Node]], str]:
        """The nodes of each start, and what of them is counted."""
        tables = [self.during(start, start).energy_by_rank() for start in self._kept]
        columns = counters([rows for nodes in tables for rows in nodes.values()])
        if not columns:
            return [], ""

        def report(rank: int, problem: str) -> None:
            self._report(f"{self.path}: energy of agent {rank}'s node: {problem}")

        starts = [[metered(rows, columns, partial(report, rank)) for rank, rows in nodes.items()] for nodes in tables]
        return starts, " and ".join(COUNTERS[name] for name in columns)

    def energy_by_rank(self) -> dict[int, np.ndarray]:
        """Return the rows of `energy` of each rank that has some: of every node."""
        tables = {rank: self.energy(rank) for rank in range(len(self.parts))}
        return {rank: rows for rank, rows in tables.items() if len(rows)}

    @cached_property
    def scores(self) -> np.ndarray:
        """The finished episodes in the order of time: steps (of all agents), hours, kilojoules (NaN unless measured), score.

        Steps are the sum over agents of what each had done at the end of the update in which the episode ended (see `Steps`).
        Episodes whose score is not finite are left out.
        """
        tables = [self.episodes(rank) for rank in range(len(self.parts))]
        steps = np.concatenate([self.steps_of_all(rank, episodes) for rank, episodes in enumerate(tables)])
        episodes = np.concatenate(tables)
        hours, joules, _ = self.joules
        table = np.empty(len(episodes), SCORES)
        table["steps"], table["hours"], table["score"] = steps, episodes["hours"], episodes["score"]
        table["kilojoules"] = np.interp(episodes["hours"], hours, joules / 1000) if len(hours) else np.nan
        if broken := np.count_nonzero(~np.isfinite(table["score"])):
            self._report(f"{self.path}: {broken:,} of {len(table):,} episodes have a score that is not finite; left out")
            table = table[np.isfinite(table["score"])]
        return table[np.argsort(table["hours"], kind="stable")]

    def steps_of_all(self, rank: int, rows: np.ndarray) -> np.ndarray:
        """Return the steps of all agents at rows of a rank's updates, episodes or energy, float64 [rows].

        They are the sum over agents of the steps that each had done then. (Rows have what their own agent had heard of,
        `run_steps`, which is less.)
        """
        steps = np.zeros(len(rows))
        for after_update, count in self._counts:
            later = rows["update"] > after_update
            steps[later] = count.at(rows[later])
        return steps

    @cached_property
    def _counts(self) -> list[tuple[int, Steps]]:
        """The count of steps after an update, since when the run had the same agents that can be read; in order."""
        changes = agents_after(self.parts, self._starts_of, self.agents)
        ends = [update for update, *_ in changes[1:]] + [math.inf]
        counts = []
        for (begin, agents, ranks), end in zip(changes, ends):
            tables = [self.updates(rank) for rank in ranks]
            counts.append((begin, Steps([t[(t["update"] > begin) & (t["update"] <= end)] for t in tables], agents)))
        return counts

    @property
    def leading_parts(self) -> list[Part]:
        """The parts of each start, in order, of the lowest rank that has some of it."""
        return [part for _, part in leading_parts(self.parts, self._starts_of)]

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
        """The last `updates` row of every readable rank that has one."""
        return np.concatenate([np.empty(0, TABLES["updates"]), *map(self._newest, self.readable)])

    @property
    def readable(self) -> list[int]:
        """The ranks of which some metrics of the newest start can be read."""
        newest = max((start for starts in self._starts_of for start in starts if start in self.kept), default=0)
        return ranks_of(newest, self._starts_of, self.agents)

    @property
    def steps(self) -> int:
        """Steps done, over all agents whose metrics can be read."""
        return int(self.newest["steps"].sum())

    @property
    def skipped(self) -> dict[int, int]:
        """Return of every agent, of those that have left too, that has skipped updates (a number was not finite) how many."""
        skipped = {rank: counted(self.updates(rank)["skipped"]) for rank in range(len(self.parts))}
        return {rank: number for rank, number in skipped.items() if number}

    @property
    def early(self) -> dict[int, float]:
        """Return when each agent ended that was lost, or did so long before the run, in hours by rank; NaN: it did no update.

        Long: longer than three times its slowest update, than a twentieth of the run's time, and than rows wait to be written.
        """
        early, lost = {}, self.lost
        for rank in self.readable:
            ended = self._newest(rank)["hours"]
            if not len(ended):
                early[rank] = math.nan
            elif rank in lost:
                early[rank] = float(ended[0])
            elif (gap := self.hours - ended[0]) > max(self.hours / 20, 2 * SECONDS_BETWEEN_WRITES / 3600):
                hours = self.updates(rank)["hours"]
                slowest = np.diff(hours, prepend=self._began(rank)).max(initial=0)
                early |= {rank: float(hours[-1])} if gap > 3 * slowest else {}
        return early

    def _began(self, rank: int) -> float:
        """Return when a rank's first start began, in hours."""
        first = min(start for start in self._starts_of[rank] if start in self.kept)
        return self.during(0, first - 1).hours if first else 0.0

    @property
    def lost(self) -> set[int]:
        """The ranks that have died since the run was last started (--survive)."""
        return layout.lost(self.path)

    @property
    def hours(self) -> float:
        """Training time in hours; 0 before the first update."""
        return float(np.nanmax(self.newest["hours"], initial=0))

    @property
    def state(self) -> str:
        """How far the run came, and whether metrics are missing, in words: "42% done, metrics of 31 of 32 agents"."""
        readable = len(self.readable)
        share = share_done(self.steps, readable, self.agents, self.config["total_steps"])
        words = "finished" if share >= 1 else f"{math.floor(100 * share)}% done"
        return words if readable == self.agents else f"{words}, metrics of {readable} of {self.agents} agents"

    def during(self, first: int, last: int) -> Run:
        """Return the run as it was from one of its starts to another: their rows, with the settings and agents of the last."""
        kept = range(first, last + 1)
        agents = [part.agents for ours, of in zip(self.parts, self._starts_of) for part, n in zip(ours, of) if n in kept]
        config = self.starts[last]["config"]
        return dataclasses.replace(self, config=config, agents=max(agents, default=0) or self.agents, kept=kept)

    @cached_property
    def _starts_of(self) -> list[list[int]]:
        """Which start each part is of: for each rank [parts]."""
        checkpoints = [start.get("resumed_from", -1) for start in self.starts]
        return [starts_of(parts, checkpoints) for parts in self.parts]

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata about its newest start."""
        return self.starts[self._kept[-1]]

    @property
    def _kept(self) -> list[int]:
        return [number for number in range(len(self.starts)) if number in self.kept]

    @cached_property
    def _behind(self) -> dict[tuple[int, int], float]:
        return hours_behind(self.parts, self._starts_of) if len(self.starts) > 1 else {}

    def _table(self, rank: int, name: str) -> np.ndarray:
        """Read all rows of a rank that count."""
        tables = [np.empty(0, TABLES[name])]
        ends = last_updates(self.parts[rank], self.parts[0], rank)
        for part, end, start in zip(self.parts[rank], ends, self._starts_of[rank]):
            if start not in self.kept:
                continue
            try:
                rows = written_rows(part, name, self._report)
                rows = rows[rows["update"] <= end]
                if "hours" in (rows.dtype.names or ()):
                    rows["hours"] += self._behind.get((rank, start), 0.0)
                    rows = self._timed(rows, part)
                tables.append(rows)
            except UNREADABLE as error:
                self._report(f"{part.path}: {name} cannot be read ({one_line(error)})")
        return np.concatenate(tables)

    def _timed(self, rows: np.ndarray, part: Part) -> np.ndarray:
        """Return the rows that say when they were written."""
        there = np.isfinite(rows["hours"])
        if not there.all():
            self._report(f"{part.path}: {np.count_nonzero(~there):,} rows do not say when they were written; left out")
        return rows[there]

    def _newest(self, rank: int) -> np.ndarray:
        """Read the last `updates` row of a rank, or none."""
        ends = last_updates(self.parts[rank], self.parts[0], rank)
        for part, end, start in reversed(list(zip(self.parts[rank], ends, self._starts_of[rank]))):
            try:
                if start in self.kept and len(rows := newest_row(part, "updates", end)):
                    rows["hours"] += self._behind.get((rank, start), 0.0)
                    return rows
            except UNREADABLE as error:
                self._report(f"{part.path}: updates cannot be read ({one_line(error)})")
        return np.empty(0, TABLES["updates"])

    def _report(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def share_done(steps: int, readable: int, agents: int, total_steps: int) -> float:
    """Return how much of a run is done; 1 or more: it is finished.

    By steps: the counters of updates go on from elsewhere when the number of agents has changed.

    Args:
        steps: of the agents whose metrics can be read; the others are taken to be as far as these.
        readable: how many these are.
        agents: how many the run has.
        total_steps: that all agents have to do.
    """
    return (steps * agents) / (readable * total_steps) if readable else 0.0  # whole numbers first: no rounding


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _graph(stored: str | dict[str, Any]) -> str:
    """Return a graph of the settings as one string: its name, and after a line break its text or the node of each agent."""
    graph = Graph.from_stored(stored)
    more = graph.text or " ".join(map(str, graph.nodes))
    return f"{graph.name}\n{more}" if more else graph.name
