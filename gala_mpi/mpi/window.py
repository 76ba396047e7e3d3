"""A window that others read by request-based gets, which are tested and never waited for; and the progress that this takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.progress import Progress

GETS_BETWEEN_FLUSHES = 64  # what MPICH keeps of them is 3 kB (see Window.arrived)


def as_bytes(memory: MPI.buffer) -> np.ndarray:
    """View memory that MPI shows as uint8."""
    return np.frombuffer(cast(Any, memory), np.uint8)


class Window:
    """Memory of this rank that others read. Collective to make and to free.

    Args:
        comm: the ranks that read each other.
        size: bytes; the same on all ranks.

    Attributes:
        memory: mine, uint8 [size], zeros at first.
        near: those whom I have met and whose memory I read at once, without their help.
    """

    def __init__(self, comm: MPI.Intracomm, size: int):
        # Allocate, not Create: MPI then places the window where it can be read fastest (shared memory inside a node).
        self._window = MPI.Win.Allocate(size, 1, comm=comm)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self.memory = as_bytes(self._window.tomemory())
        self.memory[:] = 0
        self.near: set[int] = set()
        self._kept: Counter[int] = Counter()  # gets from those near since the last flush
        self.sync()
        comm.Barrier()  # nobody reads before everybody has zeroed

    def sync(self) -> None:
        """Order what I have stored and read before what follows."""
        self._window.Sync()

    def get(self, rank: int, offset: int, into: np.ndarray, words: MPI.Datatype) -> MPI.Request:
        """Begin to read as much as `into` holds of a rank's memory, from byte `offset` on."""
        return self._window.Rget([into, len(into), words], rank, target=[offset, len(into), words])

    def of(self, rank: int) -> np.ndarray | None:
        """Return a rank's memory (uint8 [size]) to be read where it lies, or None where MPI does not show it.

        MPI 4.1 shows that of ranks on my host (MPI_Win_shared_query); Open MPI 5.0 does so for windows of another kind only.
        """
        try:
            memory = as_bytes(self._window.Shared_query(rank)[0])
        except MPI.Exception:
            return None
        # MPICH before 4.2.1 shows my own memory in place of one that is not shared.
        return memory if len(memory) == len(self.memory) and memory.ctypes.data != self.memory.ctypes.data else None

    def arrived(self, rank: int) -> None:
        """Order my reads of what a get has brought before what follows, and now and then let MPI forget it.

        MPICH (5.0.2) keeps 48 bytes of every operation within a host until it is flushed. That is little, but these lie
        between large blocks of the heap, which then cannot be joined to serve again: 27 MB in half an hour. Where memory is
        read at once a flush has nothing to wait for; elsewhere it might wait for others, and nothing is kept. But it gives up
        the core: with four ranks on two cores one took 2 ms.
        """
        self.sync()
        self._kept[rank] += rank in self.near
        if self._kept[rank] == GETS_BETWEEN_FLUSHES:
            self._window.Flush_local(rank)
            self._kept[rank] = 0

    def meet(self, ranks: Iterable[int], progress: Progress) -> None:
        """Read from each of `ranks`, whom I shall read later, while they are here.

        Open MPI's first access to a rank waits, inside Rget, until it has read where that rank's window lies. That must not
        happen later, when the rank may be computing, or stopped.
        """
        word = np.zeros(1, np.int64)
        for rank in ranks:
            progress.wait(self.get(rank, 0, word, MPI.INT64_T))
            request = self.get(rank, 0, word, MPI.INT64_T)
            if request.Test():
                self.near.add(rank)
            progress.wait(request)

    def free(self) -> None:
        self._window.Unlock_all()
        self.memory = np.zeros(0, np.uint8)  # the other is about to go
        self._window.Free()
