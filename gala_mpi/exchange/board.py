"""The notice board: every rank posts one row of numbers about itself; rank 0 reads them all for the live display.

Rows are read by tested gets, so that nobody waits. They are for people: a row may be a moment old, and that of a rank that
cannot be reached stays as it was.
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
        self._incoming = np.zeros_like(self.rows)
        self._asked: dict[int, MPI.Request] = {}
        self._others = list(range(1, comm.size)) if comm.rank == 0 else []
        for rank in self._others:  # while all are here: the first access may wait (see Mailbox.meet)
            self._read(rank).Wait()
        comm.Barrier()
        self._round_began = -SECONDS_BETWEEN_ROUNDS

    def post(self, **row: float) -> None:
        """Write my row."""
        values = [row[column] for column in COLUMNS]
        if self._window:
            self._mine[:] = values
            self._window.Sync()
        self.rows[self._comm.rank] = values

    def poll(self) -> None:
        """Rank 0: take the rows that have come; every half second, ask for those that are not on their way."""
        due = time.monotonic() - self._round_began >= SECONDS_BETWEEN_ROUNDS
        if due:
            self._round_began = time.monotonic()
        for rank in list(self._others):
            try:
                if rank in self._asked and self._asked[rank].Test():
                    self._window.Sync()
                    self.rows[rank] = self._incoming[rank]
                    del self._asked[rank]
                if due and rank not in self._asked:
                    self._asked[rank] = self._read(rank)
            except MPI.Exception:  # it has died, and this run goes on without it, or ends for better reasons than a display
                self._others.remove(rank)
                self._asked.pop(rank, None)

    def _read(self, rank: int) -> MPI.Request:
        words = [self._incoming[rank], len(COLUMNS), MPI.DOUBLE]
        return self._window.Rget(words, rank, target=[0, len(COLUMNS), MPI.DOUBLE])

    def close(self) -> None:
        """Collective, after everybody has left the loop."""
        if not self._window:
            return
        for request in self._asked.values():
            request.Wait()
        everybody = self._comm.Ibarrier()
        while not everybody.Test():
            self._comm.Iprobe()
            time.sleep(0.001)
        self._window.Unlock_all()
        self._mine = None
        self._window.Free()
