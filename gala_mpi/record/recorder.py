"""Record a rank's training: updates, episodes, mixes, sketches and energy, in files of the rank's own.

Rows are kept for a few seconds and written together; `flush()` writes them at once.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple, Protocol, SupportsFloat

import numpy as np

from gala_mpi.clock import SECTIONS
from gala_mpi.envs.base import Episode
from gala_mpi.exchange.base import Counters
from gala_mpi.record.energy import Meter
from gala_mpi.run import layout, tables
from gala_mpi.run.tables import SECONDS_BETWEEN_READINGS, SECONDS_BETWEEN_WRITES, TABLES

ORDER = ("episodes", "mixes", "sketches", "energy", "updates")  # of writing: who sees an update sees all its rows

ROOM = 65_536  # updates that a file has room for; when it is full, the next one begins
SKETCH_ROOM = 1024  # likewise; smaller because a sketch takes 32 KiB, and a new file is made in memory


class Losses(Protocol):
    """The terms of a learner's loss, means over the batch, and how far the policy is from the one that played."""

    @property
    def policy(self) -> SupportsFloat: ...
    @property
    def value(self) -> SupportsFloat: ...
    @property
    def entropy(self) -> SupportsFloat: ...
    @property
    def kl(self) -> SupportsFloat: ...
    @property
    def clip_share(self) -> SupportsFloat: ...
    @property
    def rho(self) -> SupportsFloat: ...


class Learner(Protocol):
    """The attributes of a learner that are recorded after each update."""

    updates: int
    steps: int


class Update(NamedTuple):
    """The result of an update. Losses and norms are means where a learner takes several steps.

    Attributes:
        losses: of the batch.
        grad_norm: norm of the gradient, before clipping.
        step_norm: length of the optimiser's step, learning rate included.
        episodes: those that ended.
        sketches: empty at most updates; else two: of this agent's own gradient, and of the parameters after the exchange.
        skipped: why nothing was learnt from the rollout, in words: what was not finite; empty: it was learnt from.
        policy_lag: updates between the parameters that played and those that learnt.
        rollout_wait, actor_wait, rollouts_torn: see `rollout.collector.Arrival`.
    """

    losses: Losses
    grad_norm: float
    step_norm: float
    episodes: list[Episode]
    sketches: list[np.ndarray]
    skipped: str = ""
    policy_lag: float = 0.0
    rollout_wait: float = np.nan
    actor_wait: float = np.nan
    rollouts_torn: float = np.nan


class Recorder:
    """The tables of one rank.

    Args:
        run: the run directory.
        rank: whose tables.
        update: the agent's update counter now; after a resume, rows of earlier files beyond it no longer count.
        updates: how many updates are still to come.
        peers: the largest number of mixes in an update.
        sketch_updates: updates from one sketch to the next; 0: no sketches.
        hours: training time before this start.
        meter: the node's energy counters, on one rank of each node; None on the others.
        metadata: of this start, written as attributes of the file.

    Attributes:
        skipped: updates so far from which nothing was learnt.
    """

    def __init__(
        self,
        run: Path,
        rank: int,
        update: int,
        updates: int,
        peers: int,
        sketch_updates: int,
        hours: float,
        meter: Meter | None = None,
        **metadata: int | bool,
    ):
        self._run, self._rank, self._peers, self._metadata = run, rank, peers, metadata
        self._sketch_updates = sketch_updates
        self._last_update = update + updates
        self._began = time.monotonic() - 3600 * hours
        self._meter = meter
        self.skipped = 0
        self._pending: dict[str, list[tuple]] = {table: [] for table in TABLES}
        self._open(update)
        self._written = self._metered = time.monotonic()
        self._cpu = time.process_time()

    @property
    def hours(self) -> float:
        """Training time of the run so far."""
        return (time.monotonic() - self._began) / 3600

    def record(self, learner: Learner, run_steps: int, done: Update, counters: Counters, seconds: dict[str, float]) -> None:
        """Record one update.

        Args:
            learner: after the update.
            run_steps: of all agents, as far as this one knows.
            done: the result of the update.
            counters: those of the exchange.
            seconds: the time spent in each section (see `clock.SECTIONS`).
        """
        losses = done.losses
        self.skipped += bool(done.skipped)
        update, steps, hours = learner.updates, learner.steps, self.hours
        lags = [update - mix.version for mix in counters.mixes]
        lag = counters.lag if counters.lag is not None else sum(lags) / len(lags) if lags else np.nan
        row = [update, steps, run_steps, hours, losses.policy, losses.value, losses.entropy]
        row += [losses.kl, losses.clip_share, losses.rho, done.policy_lag]
        row += [done.rollout_wait, done.actor_wait, done.rollouts_torn]
        row += [done.grad_norm, done.step_norm]
        row += [self.skipped, counters.staleness, lag, counters.torn, counters.corrupt, counters.progress_gap, resident_mib()]
        self._cpu, cpu = time.process_time(), self._cpu
        row += [self._cpu - cpu, *(seconds[section] for section in SECTIONS)]
        self._pending["updates"].append(tuple(row))
        self._pending["episodes"] += [
            (update, steps, run_steps, hours, e.environment, e.length, e.score) for e in done.episodes
        ]
        self._pending["mixes"] += [(update, *mix) for mix in counters.mixes]
        if done.sketches:
            gradient, parameters = done.sketches
            self._pending["sketches"].append((update, parameters, gradient))
        if self._meter and time.monotonic() - self._metered > SECONDS_BETWEEN_READINGS:
            self._pending["energy"].append((update, hours, *dataclasses.astuple(self._meter.read())))
            self._metered = time.monotonic()
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES or len(self._pending["episodes"]) > ROOM // 2:
            self.flush()

    def flush(self) -> None:
        """Write all pending rows. They are not lost if the process is killed afterwards."""
        if any(self._tables.room(name) < len(rows) for name, rows in self._pending.items()):
            first = self._pending["updates"][0][0] - 1
            self._tables.close()
            self._open(first)
        for name in ORDER:
            self._tables.append(name, np.array(self._pending[name], TABLES[name]))
            self._pending[name] = []
        self._written = time.monotonic()

    def sync(self) -> None:
        """Write all pending rows, and wait until they are on the disk."""
        self.flush()
        self._tables.sync()

    def close(self) -> None:
        """Write all pending rows to the disk, and close the file."""
        self.sync()
        self._tables.close()

    def _open(self, update: int) -> None:
        """Begin a new file, whose rows come after `update`."""
        room = min(ROOM, max(self._last_update - update, 1))
        rooms = {
            "updates": room,
            "episodes": ROOM,
            "mixes": room * self._peers,
            "sketches": min(SKETCH_ROOM, room // self._sketch_updates + 1) if self._sketch_updates else 1,
            "energy": ROOM if self._meter else 1,
        }
        # At least the pending rows: in place of a lost peer (--survive) several are mixed.
        rooms = {name: max(1, count, len(self._pending[name])) for name, count in rooms.items()}
        layouts = {name: (TABLES[name], rooms[name]) for name in TABLES}
        path = layout.next_metrics_file(self._run, self._rank)
        self._tables = tables.Tables(path, layouts, {"rank": self._rank, "after_update": update, **self._metadata})


def resident_mib() -> float:
    """Return the resident memory of this process, in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
