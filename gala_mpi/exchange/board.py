"""The notice board: every rank posts one row of numbers about itself; rank 0 reads them all for the live display.

Rows are read by tested gets, one at a time, so that nobody waits. They are for people: a row may be a moment old.
"""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI

COLUMNS = ("updates", "steps", "episodes", "recent_score", "recent_episodes", "age", "staleness")
SECONDS_BETWEEN_ROUNDS = 0.5


class Board:
    """One row of float64 per rank. Collective to make and to close; one rank alone needs no window.

    Args:
        comm: all agents.

    Attributes:
        rows: rank 0's view, float64 [ranks, len(COLUMNS)], as last seen.
    """

    def __init__(self, comm: MPI.Intracomm):
        self._comm = comm
        self.rows = np.zeros((comm.size, len(COLUMNS)))
        self._window = MPI.Win.Allocate(8 * len(COLUMNS), 1, comm=comm) if comm.size > 1 else None
        if self._window:
            self._window.Lock_all(MPI.MODE_NOCHECK)
            self._mine = np.frombuffer(self._window.tomemory(), np.float64)
            self._mine[:] = 0
            self._window.Sync()
            comm.Barrier()
        self._incoming = np.zeros(len(COLUMNS))
        if comm.rank == 0:
            for rank in range(1, comm.size):  # while all are here: the first access may wait (see Mailbox.meet)
                self._read(rank).Wait()
        comm.Barrier()
        self._asked: MPI.Request | None = None
        self._next = 1  # whom rank 0 reads next
        self._round_began = -SECONDS_BETWEEN_ROUNDS

    def post(self, **row: float) -> None:
        """Write my row."""
        values = [row[column] for column in COLUMNS]
        if self._window:
            self._mine[:] = values
            self._window.Sync()
        self.rows[self._comm.rank] = values

    def poll(self) -> None:
        """Rank 0: read what can be read without waiting, at most one round of all ranks each half second."""
        while self._comm.size > 1 and (self._asked is None or self._asked.Test()):
            if self._asked is not None:
                self._window.Sync()
                self.rows[self._next] = self._incoming
                self._asked = None
                self._next = self._next % (self._comm.size - 1) + 1
            if self._next == 1:
                if time.monotonic() - self._round_began < SECONDS_BETWEEN_ROUNDS:
                    return
                self._round_began = time.monotonic()
            self._asked = self._read(self._next)

    def _read(self, rank: int) -> MPI.Request:
        words = [self._incoming, len(COLUMNS), MPI.DOUBLE]
        return self._window.Rget(words, rank, target=[0, len(COLUMNS), MPI.DOUBLE])

    def close(self) -> None:
        """Collective, after everybody has left the loop."""
        if not self._window:
            return
        if self._asked is not None:
            self._asked.Wait()
        everybody = self._comm.Ibarrier()
        while not everybody.Test():
            self._comm.Iprobe()
            time.sleep(0.001)
        self._window.Unlock_all()
        self._mine = None
        self._window.Free()
        self._window = None
