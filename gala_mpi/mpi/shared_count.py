"""A count that all ranks add to and read, though nobody waits for anybody."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.progress import Progress
from gala_mpi.mpi.window import Window

BYTES = 8
TESTS_PER_PROGRESS = 10


class SharedCount:
    """An int64 in rank 0's window, 0 at first. Collective to make and to free.

    Operations on it are tested and never waited for, but by whoever adds twice before the first has arrived.

    Args:
        comm: all ranks.
    """

    def __init__(self, comm: MPI.Intracomm):
        self._progress = Progress()
        self._window = Window(comm, BYTES)
        self._window.meet([0], self._progress)
        self._one, self._zero = np.ones(1, np.int64), np.zeros(1, np.int64)
        self._before_added, self._read = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._adding = self._reading = MPI.REQUEST_NULL
        self._known = 0

    def add(self) -> None:
        """Begin to add 1."""
        self._progress.wait(self._adding)
        self._adding = self._window.fetch_and_add(0, 0, self._one, self._before_added)

    def look(self) -> int:
        """Return the count as it was when it was last read, at least; and read it again, if that has arrived."""
        if not self._arrived():
            return self._known
        self._reading = self._window.fetch_and_add(0, 0, self._zero, self._read)
        self._arrived()  # at once, where memory is shared
        return self._known

    def _arrived(self) -> bool:
        """Take in what has been read; return whether nothing is on its way."""
        if self._reading == MPI.REQUEST_NULL:
            return True
        if not self._reading.Test():
            return False
        self._window.arrived(0)
        self._known = max(self._known, int(self._read[0]))
        return True

    def progress(self) -> None:
        """Move what is on its way along, this rank's or another's; called often."""
        self._progress.test(TESTS_PER_PROGRESS)

    def free(self) -> None:
        """Free the window. Collective."""
        for request in (self._adding, self._reading):
            self._progress.wait(request)
        self._window.free()
        self._progress.close()
