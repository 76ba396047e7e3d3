"""The live board: every rank posts one row of numbers about itself, and rank 0 reads them all for the live display.

Rows are read by tested gets, so that nobody waits. They are for people: a row may be half a second old, and that of a rank that
cannot be reached stays as it was. All rows are of about the same moment, rank 0's own too, so that they can be compared.
"""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.progress import Progress
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.window import Window

# updates, steps and episodes: of the agent so far; recent_score: mean of its last recent_episodes scores; mixes: messages that
# it has mixed; staleness: updates since it last mixed one
COLUMNS: tuple[str, ...] = ("updates", "steps", "episodes", "recent_score", "recent_episodes", "mixes", "staleness")
SECONDS_BETWEEN_ROUNDS = 0.5


class LiveBoard:
    """One row of numbers per rank. Collective to make and to close; one rank alone needs no window.

    Args:
        comm: all agents.

    Attributes:
        rows: rank 0's view, float64 [ranks, len(COLUMNS)], as last seen.
    """

    def __init__(self, comm: MPI.Intracomm):
        self._comm = comm
        self.rows = np.zeros((comm.size, len(COLUMNS)))
        self._others = list(range(1, comm.size)) if comm.rank == 0 else []
        self._progress = Progress()
        self._window = Window(comm, 8 * len(COLUMNS)) if comm.size > 1 else None
        if self._window:
            self._window.meet(self._others, self._progress)
            comm.Barrier()
        self._incoming = np.zeros_like(self.rows)
        self._asked: dict[int, MPI.Request] = {}
        self._round_began = -SECONDS_BETWEEN_ROUNDS

    def post(self, **row: float) -> None:
        """Write this rank's row."""
        values = [row[column] for column in COLUMNS]
        if self._window:
            self._window.memory.view(np.float64)[:] = values
            self._window.sync()
        self._incoming[self._comm.rank] = values
        if not self._others:
            self.rows[self._comm.rank] = values

    def poll(self) -> None:
        """Take the rows that have come; every half second, ask for those that are not on their way. For rank 0."""
        if self._window is None:
            return
        due = time.monotonic() - self._round_began >= SECONDS_BETWEEN_ROUNDS
        if due:
            self._round_began = time.monotonic()
            self.rows[self._comm.rank] = self._incoming[self._comm.rank]
        for rank in list(self._others):
            try:
                if rank in self._asked and self._asked[rank].Test():
                    self._window.arrived(rank)
                    self.rows[rank] = self._incoming[rank]
                    del self._asked[rank]
                if due and rank not in self._asked:
                    self._asked[rank] = self._window.get(rank, 0, self._incoming[rank], MPI.DOUBLE)
            except MPI.Exception:  # it has died, and this run goes on without it, or ends for better reasons than a display
                self._others.remove(rank)
                self._asked.pop(rank, None)

    def close(self) -> None:
        """Free the window, after all ranks have left the training loop. Collective."""
        if self._window:
            for request in self._asked.values():
                self._progress.wait(request)
            self._progress.wait(self._comm.Ibarrier(), Roll.of(self._comm).watch())
            self._window.free()
        self._progress.close()
