"""What a rank writes down while it trains: updates, episodes, mixes, sketches and energy, in the rank's own file.

Rows are kept for a few seconds and written together; `flush()` writes at once.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gala_mpi.envs.base import Episode
from gala_mpi.exchange.base import Counters
from gala_mpi.learners.base import Learner, Losses
from gala_mpi.record.energy import Meter
from gala_mpi.run import layout, tables
from gala_mpi.run.tables import SECTIONS, TABLES

ORDER = ("episodes", "mixes", "sketches", "energy", "updates")  # of writing: whoever sees an update sees what came with it

SECONDS_BETWEEN_WRITES = 2.0
SECONDS_BETWEEN_READINGS = 10.0  # of the node's counters
ROOM = 65_536  # updates a file has room for; when one is full the next begins
SKETCH_ROOM = 1024  # likewise; a sketch takes 32 KiB, and a new file is made in memory


class Update(NamedTuple):
    """The result of an update. Losses and norms are means where a learner takes several steps.

    Attributes:
        grad_norm: length of the gradient, before clipping.
        step_norm: length of the optimiser's step, learning rate included.
        episodes: those that ended.
        sketches: now and then two: of this agent's own gradient, and of the parameters with which it goes on.
    """

    losses: Losses
    grad_norm: float
    step_norm: float
    episodes: list[Episode]
    sketches: list[np.ndarray]


class Recorder:
    """The tables of one rank.

    Args:
        run: the run directory.
        rank: whose tables.
        update: the agent's update counter now: rows of earlier files beyond it are superseded by a resume.
        updates: how many updates are still to come.
        peers: the most mixes an update can bring.
        sketch_updates: updates from one sketch to the next; 0: there are none.
        hours: training time before this start.
        meter: the node's counters, for one rank of a node.
        metadata: about this start, kept as attributes.
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
        self._run, self._rank, self._peers, self._facts = run, rank, peers, metadata
        self._sketch_updates = sketch_updates
        self._last_update = update + updates
        self._began = time.monotonic() - 3600 * hours
        self._meter = meter
        self._waiting: dict[str, list[tuple]] = {table: [] for table in TABLES}
        self._open(update)
        self._written = self._metered = time.monotonic()
        self._cpu = time.process_time()

    @property
    def hours(self) -> float:
        """Training time of the run so far."""
        return (time.monotonic() - self._began) / 3600

    def record(self, learner: Learner, done: Update, counters: Counters, seconds: dict[str, float]) -> None:
        """One update's rows; `seconds` of each section of it."""
        losses = done.losses
        update, steps, hours = learner.updates, learner.steps, self.hours
        ages = [update - mix.version for mix in counters.mixes]
        age = sum(ages) / len(ages) if ages else np.nan
        row = [update, steps, hours, losses.policy, losses.value, losses.entropy, done.grad_norm, done.step_norm]
        row += [counters.staleness, age, counters.torn, counters.corrupt, counters.progress_gap, resident_mib()]
        self._cpu, cpu = time.process_time(), self._cpu
        row += [self._cpu - cpu, *(seconds[section] for section in SECTIONS)]
        self._waiting["updates"].append(tuple(row))
        self._waiting["episodes"] += [(update, steps, hours, e.simulator, e.length, e.score) for e in done.episodes]
        self._waiting["mixes"] += [(update, *mix) for mix in counters.mixes]
        if done.sketches:
            gradient, parameters = done.sketches
            self._waiting["sketches"].append((update, parameters, gradient))
        if self._meter and time.monotonic() - self._metered > SECONDS_BETWEEN_READINGS:
            self._waiting["energy"].append((update, hours, *dataclasses.astuple(self._meter.read())))
            self._metered = time.monotonic()
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES or len(self._waiting["episodes"]) > ROOM // 2:
            self.flush()

    def flush(self) -> None:
        """Write all rows that wait. A kill after this loses none of them."""
        if any(self._tables.room(name) < len(rows) for name, rows in self._waiting.items()):
            first = self._waiting["updates"][0][0] - 1
            self._tables.close()
            self._open(first)
        for name in ORDER:
            self._tables.append(name, np.array(self._waiting[name], TABLES[name]))
            self._waiting[name] = []
        self._written = time.monotonic()

    def sync(self) -> None:
        """Flush, and see the rows onto the disk."""
        self.flush()
        self._tables.sync()

    def close(self) -> None:
        self.sync()
        self._tables.close()

    def _open(self, update: int) -> None:
        room = min(ROOM, max(self._last_update - update, 1))
        rooms = {
            "updates": room,
            "episodes": ROOM,
            "mixes": room * self._peers,
            "sketches": min(SKETCH_ROOM, room // self._sketch_updates + 1) if self._sketch_updates else 1,
            "energy": ROOM if self._meter else 1,
        }
        # At least what waits: in place of a lost peer (--survive) several are mixed.
        rooms = {name: max(1, count, len(self._waiting[name])) for name, count in rooms.items()}
        layouts = {name: (TABLES[name], rooms[name]) for name in TABLES}
        path = layout.next_metrics_file(self._run, self._rank)
        self._tables = tables.Tables(path, layouts, {"rank": self._rank, "after_update": update, **self._facts})


def resident_mib() -> float:
    """This process's resident memory, MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
