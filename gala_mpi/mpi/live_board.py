"""The live board: one row of numbers about every rank, on every rank. All count the run's steps by it, and rank 0 shows it.

Every rank keeps the whole table in its own window, and after each of its updates reads that of one other: the rank 1, 2, 4, ...
places after it, in turn (the one-peer exponential graph). So what a rank posts is known to all after log2 n updates; over a
network, where a read takes until the next update, after twice as many. Nobody waits, and no rank is read by more than log2 n
others. A table that cannot be read (its rank has died, or was stopped) is left out; what it would have brought comes by another
way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.progress import Progress
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.window import Window

# updates, steps and episodes: of the agent so far; recent_score: mean of its last recent_episodes scores; mixes: messages that
# it has mixed; staleness: updates since it last mixed one; skipped: updates from which it learnt nothing
COLUMNS: tuple[str, ...] = ("updates", "steps", "episodes", "recent_score", "recent_episodes", "mixes", "staleness", "skipped")
STEPS = COLUMNS.index("steps")
# A table is read while its rank writes it, so each row ends with a checksum of its numbers' bits: a row of which a part was
# read too early is not taken. (Their sum with odd weights, modulo 2⁶⁴. That of zeros is 0.)
WEIGHTS = np.array([(2 * k + 1) * 0x9E3779B97F4A7C15 % 2**63 | 1 for k in range(len(COLUMNS))], np.int64)


class LiveBoard:
    """One row of numbers per rank. Collective to make and to close; one rank alone needs no window.

    Args:
        comm: all agents.
        row: this rank's first one. All ranks know all of these from the start.
    """

    def __init__(self, comm: MPI.Intracomm, **row: float):
        self._comm, self._roll = comm, Roll.of(comm)
        self._roll.wait(comm.Ibarrier())  # one that is held up (by a slow disk, say) is named
        self._table = np.zeros((comm.size, len(COLUMNS) + 1))
        self._progress = Progress()
        self._window = Window(comm, self._table.nbytes) if comm.size > 1 else None
        if self._window:
            self._table = self._window.memory.view(np.float64).reshape(self._table.shape)
        self._table[:] = [_sealed(numbers) for numbers in comm.allgather([row.get(column, 0.0) for column in COLUMNS])]
        distances = [1 << k for k in range((comm.size - 1).bit_length())]
        self._peers = [(comm.rank + distance) % comm.size for distance in distances]
        self._incoming = {peer: np.zeros_like(self._table) for peer in self._peers}
        self._asked: dict[int, MPI.Request] = {}
        if self._window:
            self._window.sync()
            self._window.meet(self._peers, self._progress)
            comm.Barrier()

    @property
    def rows(self) -> np.ndarray:
        """What is known here, float64 [ranks, len(COLUMNS)]."""
        return self._table[:, :-1]

    @property
    def steps(self) -> int:
        """Steps of all agents, as far as this rank has heard: never more than there are."""
        return int(self.rows[:, STEPS].sum())

    def post(self, **row: float) -> None:
        """Write this rank's row."""
        self._table[self._comm.rank] = _sealed([row[column] for column in COLUMNS])
        if self._window:
            self._window.sync()

    def poll(self) -> None:
        """Take the tables that have come, and ask the next peer for its own."""
        if self._window is None:
            return
        self._collect()
        if not self._peers:
            return
        peer = self._peers.pop(0)
        self._peers.append(peer)
        if peer not in self._asked:
            self._reach(peer, self._ask)

    def _collect(self) -> None:
        for peer in list(self._asked):
            self._reach(peer, self._take)

    def _ask(self, peer: int) -> None:
        assert self._window is not None  # else there are no peers
        self._asked[peer] = self._window.get(peer, 0, self._incoming[peer].reshape(-1), MPI.DOUBLE)
        self._take(peer)  # within a host it is there at once

    def _take(self, peer: int) -> None:
        """Merge a table that has come into this rank's: of every row, the one with more steps."""
        assert self._window is not None  # else there are no peers
        if not self._asked[peer].Test():
            return
        del self._asked[peer]
        self._window.arrived(peer)
        incoming = self._incoming[peer]
        newer = (incoming[:, STEPS] > self._table[:, STEPS]) & _whole(incoming)
        newer[self._comm.rank] = False
        self._table[newer] = incoming[newer]
        self._window.sync()

    def _reach(self, peer: int, step: Callable[[int], None]) -> None:
        """Do `step`; where MPI cannot reach the peer any more, leave it out: this run goes on without it, or ends for better
        reasons than a display."""
        try:
            step(peer)
        except MPI.Exception:
            self._peers.remove(peer)
            self._asked.pop(peer, None)

    def close(self) -> None:
        """Free the window, after all ranks have left the training loop. Collective."""
        if self._window:
            for peer, request in self._asked.items():
                self._progress.wait(request, self._roll.watch_peers([peer]))
            self._progress.wait(self._comm.Ibarrier(), self._roll.watch())
            self._table = self._table.copy()  # the view of memory that is freed next is given up
            self._window.free()
        self._progress.close()


def _checksums(rows: np.ndarray) -> np.ndarray:
    """Return those of rows, float64 [n, len(COLUMNS)] → int64 [n]."""
    return (rows.view(np.int64) * WEIGHTS).sum(axis=1)


def _sealed(numbers: Sequence[float]) -> np.ndarray:
    """Return a row with its checksum, float64 [len(COLUMNS) + 1]."""
    row = np.array([[*numbers, 0.0]])
    row.view(np.int64)[:, -1] = _checksums(row[:, :-1])
    return row[0]


def _whole(table: np.ndarray) -> np.ndarray:
    """Return which rows of a table have their own checksum, bool [n]."""
    return table.view(np.int64)[:, -1] == _checksums(table[:, :-1])
