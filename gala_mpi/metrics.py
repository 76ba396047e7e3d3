"""What a rank writes down while it trains: updates, episodes, mixes, sketches and energy, in the rank's own file.

Rows are kept for a few seconds and written together; `flush()` writes at once.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np

from gala_mpi import store
from gala_mpi.agent import Update
from gala_mpi.clock import SECTIONS
from gala_mpi.energy import Meter
from gala_mpi.exchange import Counters
from gala_mpi.learner import A2C
from gala_mpi.sketch import SIZE

# Of every table the columns, in order: name, type, unit and meaning. docs/metrics.md is made of it.
COLUMNS: dict[str, list[tuple]] = {
    "updates": [
        ("update", "<i8", "", "the agent's update counter: its version"),
        ("steps", "<i8", "steps", "this agent's so far, over all restarts"),
        ("hours", "<f8", "h", "training time of the run so far, over all restarts"),
        ("policy_loss", "<f4", "", "mean over the batch"),
        ("value_loss", "<f4", "", "mean over the batch, without its coefficient"),
        ("entropy", "<f4", "nats", "of the policy, mean over the batch"),
        ("grad_norm", "<f4", "", "length of the gradient, before clipping"),
        ("step_norm", "<f4", "", "length of the optimiser's step, learning rate included"),
        ("staleness", "<i4", "updates", "since the last mix"),
        ("age", "<f4", "updates", "my version minus the version mixed, mean over peers; NaN without a mix"),
        ("torn", "<i4", "messages", "thrown away since the start: their slot was rewritten while they were read"),
        ("corrupt", "<i4", "messages", "thrown away since the start: their checksum was wrong (`--checksum`)"),
        ("poke_gap", "<f4", "s", "longest time since the last update without a poke"),
        ("rss", "<f4", "MiB", "resident memory"),
        ("cpu", "<f4", "s", "processor time of this process since the last update, all threads"),
        *((section, "<f4", "s", meaning) for section, meaning in SECTIONS.items()),
    ],
    "episodes": [
        ("update", "<i8", "", "in which the game ended"),
        ("steps", "<i8", "steps", "this agent's at the end of that update"),
        ("hours", "<f8", "h", "training time of the run so far, over all restarts"),
        ("simulator", "<i4", "", "of this agent, from 0"),
        ("length", "<i4", "steps", "of the whole game"),
        ("score", "<f4", "points", "sum of the game's real rewards, never clipped"),
    ],
    "mixes": [  # my own weight is what is left of 1
        ("update", "<i8", "", "at which the message was mixed"),
        ("peer", "<i4", "", "rank of its sender"),
        ("version", "<i8", "", "the sender's update counter when it was published"),
        ("weight", "<f8", "", "of the message in the average; this agent's own is what is left of 1"),
    ],
    "sketches": [
        ("update", "<i8", "", "every `--sketch-updates`"),
        ("parameters", ("<f4", (SIZE,)), "", "count sketch of the parameters after the exchange"),
        ("gradient", ("<f4", (SIZE,)), "", "count sketch of this agent's own gradient, before any averaging and clipping"),
    ],
    "energy": [  # of a whole node, written by its first rank; NaN: not available
        ("update", "<i8", "", "at which the node's counters were read"),
        ("hours", "<f8", "h", "training time of the run so far, over all restarts"),
        ("seconds", "<f4", "s", "since the row before; the others are of this time"),
        ("cpu_joules", "<f4", "J", "packages and memory, by RAPL; NaN: the kernel shows none"),
        ("gpu_joules", "<f4", "J", "all GPUs of the node, by NVML; NaN: there are none"),
        ("node_joules", "<f4", "J", "the node's own counter (pm_counters, which Slurm reads too); NaN: it has none"),
        ("cores_busy", "<f4", "", "share of the node's cores, whoever used them"),
        ("gpus_busy", "<f4", "", "share of the time, mean over the node's GPUs; NaN: there are none"),
    ],
}


def _dtype(table: str) -> np.dtype:
    kinds = ((name, *(kind if isinstance(kind, tuple) else (kind,))) for name, kind, _, _ in COLUMNS[table])
    return np.dtype(list(kinds))


TABLES = {table: _dtype(table) for table in COLUMNS}
ORDER = ("episodes", "mixes", "sketches", "energy", "updates")  # of writing: whoever sees an update sees what came with it

SECONDS_BETWEEN_WRITES = 2.0
SECONDS_BETWEEN_READINGS = 10.0  # of the node's counters
ROOM = 65_536  # updates a file has room for; when one is full the next begins
SKETCH_ROOM = 1024  # likewise; a sketch takes 32 KiB, and a new file is made in memory


class Metrics:
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
        facts: about this start, kept as attributes.
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
        **facts: int | bool,
    ):
        self._run, self._rank, self._peers, self._facts = run, rank, peers, facts
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

    def record(self, learner: A2C, done: Update, counters: Counters, seconds: dict[str, float]) -> None:
        """One update's rows; `seconds` of each section of it."""
        losses = done.losses
        update, steps, hours = learner.updates, learner.steps, self.hours
        ages = [update - mix.version for mix in counters.mixes]
        age = sum(ages) / len(ages) if ages else np.nan
        row = [update, steps, hours, losses.policy, losses.value, losses.entropy, done.grad_norm, learner.step_norm]
        row += [counters.staleness, age, counters.torn, counters.corrupt, counters.poke_gap, resident_mib()]
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
        path = store.next_metrics_file(self._run, self._rank)
        self._tables = store.Tables(path, layouts, {"rank": self._rank, "after_update": update, **self._facts})


def resident_mib() -> float:
    """This process's resident memory, MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
