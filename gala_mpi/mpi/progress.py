"""Progress is everybody's duty: MPI moves data for others only while a rank is inside MPI."""

from __future__ import annotations

import time
from collections.abc import Callable

from mpi4py import MPI

SECONDS_OF_A_BURST = 1e-3
TESTS_OF_A_BURST = 100  # a network moves messages in pieces, a few a test


class Progress:
    """Give MPI time to serve others.

    It does so by a receive from myself that is never answered: testing that makes progress on every MPI, where Iprobe does
    not (Open MPI with osc/ucx), nor does testing a complete request (MPICH).
    """

    def __init__(self):
        self._self = MPI.COMM_SELF.Dup()
        self._never = self._self.Irecv([bytearray(1), MPI.BYTE], source=0)

    def test(self, times: int) -> None:
        """Test so many times, but no longer than a burst may last: moving a message takes some milliseconds of computing."""
        end = time.perf_counter() + SECONDS_OF_A_BURST
        for _ in range(times):
            self._never.Test()
            if time.perf_counter() > end:
                return

    def wait(self, request: MPI.Request, *meanwhile: Callable[[], None]) -> None:
        """Wait until `request` is complete, with progress for others and without keeping a core from them."""
        while not request.Test():
            for do in meanwhile:
                do()
            self.test(TESTS_OF_A_BURST)
            time.sleep(0.001)

    def close(self) -> None:
        self._self.Send([bytearray(1), MPI.BYTE], dest=0)
        self._never.Wait()
        self._self.Free()
