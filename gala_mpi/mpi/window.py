"""An MPI window whose memory other ranks read by request-based gets, which are tested and never waited for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.progress import Progress

GETS_BETWEEN_FLUSHES = 64  # for which MPICH keeps 3 kB (see Window.arrived)


def as_bytes(memory: MPI.buffer) -> np.ndarray:
    """View memory that MPI shows as uint8."""
    return np.frombuffer(cast(Any, memory), np.uint8)


class Window:
    """Memory of this rank that other ranks read. Collective to make and to free.

    Args:
        comm: the ranks that read each other.
        size: bytes of this rank's memory.

    Attributes:
        memory: this rank's own, uint8 [size], zeros at first.
        near: the ranks passed to `meet` whose memory is read at once, without their help.
    """

    def __init__(self, comm: MPI.Intracomm, size: int):
        # Allocate, not Create: MPI then places the window where it can be read fastest (shared memory inside a node).
        self._window = MPI.Win.Allocate(size, 1, comm=comm)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self.memory = as_bytes(self._window.tomemory())
        self.memory[:] = 0
        self.near: set[int] = set()
        self._unflushed: Counter[int] = Counter()  # gets from near ranks since the last flush
        self.sync()
        comm.Barrier()  # no rank reads before all have zeroed their memory

    def sync(self) -> None:
        """Order this rank's earlier loads and stores before its later ones."""
        self._window.Sync()

    def get(self, rank: int, offset: int, into: np.ndarray, words: MPI.Datatype) -> MPI.Request:
        """Begin to read a rank's memory from byte `offset` on, as much as fits `into`, and return the request."""
        return self._window.Rget([into, len(into), words], rank, target=[offset, len(into), words])

    def fetch_and_add(self, rank: int, offset: int, add: np.ndarray, before: np.ndarray) -> MPI.Request:
        """Begin to add int64 numbers to those at byte `offset` of a rank's memory, and return the request.

        Args:
            before: int64, as many, which becomes what was there before. Atomic, number by number; to add 0 is to read.
        """
        words = MPI.INT64_T
        target = [offset, len(add), words]
        return self._window.Rget_accumulate([add, len(add), words], [before, len(before), words], rank, target, op=MPI.SUM)

    def shared_view(self, rank: int, size: int) -> np.ndarray | None:
        """Return a view (uint8 [size]) of a rank's memory, to be read in place; None where MPI does not expose it.

        MPI 4.1 exposes the memory of ranks on the same host (MPI_Win_shared_query); Open MPI 5.0 does so only for windows of
        another kind.
        """
        try:
            memory = as_bytes(self._window.Shared_query(rank)[0])
        except MPI.Exception:
            return None
        # MPICH before 4.2.1 returns this rank's own memory in place of one that is not shared.
        return memory if len(memory) == size and memory.ctypes.data != self.memory.ctypes.data else None

    def arrived(self, rank: int) -> None:
        """Order the reads of a complete get before later ones, and flush now and then. To be called after every get.

        MPICH (5.0.2) keeps 48 bytes for every operation within a host until it is flushed. That is little, but these bytes
        lie between large blocks of the heap, which then cannot be joined and reused: 27 MB in half an hour. Where memory is
        read at once, a flush has nothing to wait for; elsewhere it might wait for other ranks, and MPICH keeps nothing. A
        flush is not free, because it yields the core: with four ranks on two cores one took 2 ms.
        """
        self.sync()
        self._unflushed[rank] += rank in self.near
        if self._unflushed[rank] == GETS_BETWEEN_FLUSHES:
            self._window.Flush_local(rank)
            self._unflushed[rank] = 0

    def meet(self, ranks: Iterable[int], progress: Progress) -> None:
        """Read once from each of `ranks`, which will be read later, while they are known to be in MPI.

        Open MPI's first access to a rank waits, inside Rget, until it has read where that rank's window lies. That must not
        happen later, when the rank may be computing or stopped.
        """
        word = np.zeros(1, np.int64)
        for rank in ranks:
            progress.wait(self.get(rank, 0, word, MPI.INT64_T))
            request = self.get(rank, 0, word, MPI.INT64_T)
            if request.Test():
                self.near.add(rank)
            progress.wait(request)

    def free(self) -> None:
        """Free the window. Collective."""
        self._window.Unlock_all()
        self.memory = np.zeros(0, np.uint8)  # the view of memory that is freed next is given up
        self._window.Free()
