"""What a rank writes down while it trains: updates, episodes, mixes and sketches. One row each, in the rank's own file.

Rows are kept for a few seconds and written together; `flush()` writes at once.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from gala_mpi import store
from gala_mpi.clock import SECTIONS
from gala_mpi.envs import Episode
from gala_mpi.exchange import Counters
from gala_mpi.learner import A2C, Losses
from gala_mpi.sketch import SIZE

UPDATES = np.dtype(
    [
        ("update", "<i8"),  # the agent's update counter: its version
        ("steps", "<i8"),  # this agent's steps so far, over all restarts
        ("hours", "<f8"),  # training time of the run so far, over all restarts
        ("policy_loss", "<f4"),
        ("value_loss", "<f4"),
        ("entropy", "<f4"),  # nats
        ("grad_norm", "<f4"),  # before clipping
        ("step_norm", "<f4"),  # length of the optimiser's step, learning rate included
        ("staleness", "<i4"),  # updates since the last mix
        ("age", "<f4"),  # my version minus the version mixed, mean over peers; NaN without a mix
        ("torn", "<i4"),  # messages thrown away since the start because their slot was rewritten while they were read
        ("corrupt", "<i4"),  # messages thrown away since the start because their checksum was wrong (--checksum)
        ("poke_gap", "<f4"),  # longest time since the last update without a call into MPI, s
        ("rss", "<f4"),  # resident memory, MiB
        *((section, "<f4") for section in SECTIONS),  # seconds spent in each part of the update
    ]
)
EPISODES = np.dtype(
    [
        ("update", "<i8"),
        ("steps", "<i8"),  # this agent's steps at the end of the update in which the game ended
        ("hours", "<f8"),
        ("simulator", "<i4"),
        ("length", "<i4"),  # steps
        ("score", "<f4"),  # real, of the whole game
    ]
)
# Whose version was mixed when, and with which weight. My own is what is left of 1.
MIXES = np.dtype([("update", "<i8"), ("peer", "<i4"), ("version", "<i8"), ("weight", "<f8")])
SKETCHES = np.dtype(
    [
        ("update", "<i8"),
        ("parameters", "<f4", (SIZE,)),  # after the exchange
        ("gradient", "<f4", (SIZE,)),  # this agent's own, before any averaging and clipping
    ]
)

SECONDS_BETWEEN_WRITES = 2.0
ROOM = 65_536  # updates a file has room for; when one is full the next begins


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
        **facts: int | bool,
    ):
        self._run, self._rank, self._peers, self._facts = run, rank, peers, facts
        self._sketch_updates = sketch_updates
        self._last_update = update + updates
        self._began = time.monotonic() - 3600 * hours
        self._open(update)
        self._waiting: dict[str, list[tuple]] = {"updates": [], "episodes": [], "mixes": [], "sketches": []}
        self._written = time.monotonic()

    @property
    def hours(self) -> float:
        """Training time of the run so far."""
        return (time.monotonic() - self._began) / 3600

    def record(
        self,
        learner: A2C,
        losses: Losses,
        grad_norm: float,
        episodes: list[Episode],
        counters: Counters,
        sketches: list[np.ndarray],
        seconds: dict[str, float],
    ) -> None:
        """One update's rows. `sketches` are those of the gradient and of the parameters, or none."""
        update, steps, hours = learner.updates, learner.steps, self.hours
        ages = [update - mix.version for mix in counters.mixes]
        age = sum(ages) / len(ages) if ages else np.nan
        row = [update, steps, hours, losses.policy, losses.value, losses.entropy, grad_norm, learner.step_norm]
        row += [counters.staleness, age, counters.torn, counters.corrupt, counters.poke_gap, resident_mib()]
        row += [seconds[section] for section in SECTIONS]
        self._waiting["updates"].append(tuple(row))
        self._waiting["episodes"] += [(update, steps, hours, e.simulator, e.length, e.score) for e in episodes]
        self._waiting["mixes"] += [(update, *mix) for mix in counters.mixes]
        if sketches:
            gradient, parameters = sketches
            self._waiting["sketches"].append((update, parameters, gradient))
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES or len(self._waiting["episodes"]) > ROOM // 2:
            self.flush()

    def flush(self) -> None:
        """Write all rows that wait. A kill after this loses none of them."""
        if any(self._tables.room(name) < len(rows) for name, rows in self._waiting.items()):
            first = self._waiting["updates"][0][0] - 1
            self._tables.close()
            self._open(first)
        for name, dtype in (("episodes", EPISODES), ("mixes", MIXES), ("sketches", SKETCHES), ("updates", UPDATES)):
            self._tables.append(name, np.array(self._waiting[name], dtype))
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
        layouts = {
            "updates": (UPDATES, room),
            "episodes": (EPISODES, ROOM),
            "mixes": (MIXES, max(1, room * self._peers)),
            "sketches": (SKETCHES, room // self._sketch_updates + 1 if self._sketch_updates else 1),
        }
        path = store.next_metrics_file(self._run, self._rank)
        self._tables = store.Tables(path, layouts, {"rank": self._rank, "after_update": update, **self._facts})


def resident_mib() -> float:
    """This process's resident memory, MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
