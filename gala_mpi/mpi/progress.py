"""Make MPI progress: over TCP, MPI moves data for other ranks only while this rank is inside MPI."""

from __future__ import annotations

import time
from collections.abc import Callable

from mpi4py import MPI

SECONDS_OF_A_BURST = 1e-3
TESTS_OF_A_BURST = 100  # a network moves messages in pieces, a few per test


class Progress:
    """Make MPI progress by testing a request that never completes.

    The request is a receive by this rank from itself that is not answered until `close`. Testing it makes progress with
    every MPI library. Iprobe does not (Open MPI with osc/ucx), nor does testing a completed request (MPICH).
    """

    def __init__(self):
        self._self = MPI.COMM_SELF.Dup()
        self._never = self._self.Irecv([bytearray(1), MPI.BYTE], source=0)

    def test(self, times: int) -> None:
        """Test up to `times` times, but no longer than a burst may last: moving a message takes milliseconds of computing."""
        end = time.perf_counter() + SECONDS_OF_A_BURST
        for _ in range(times):
            self._never.Test()
            if time.perf_counter() > end:
                return

    def wait(self, request: MPI.Request, *meanwhile: Callable[[], None]) -> None:
        """Wait until `request` is complete, making progress for other ranks and leaving them the core between tests.

        Args:
            meanwhile: called again and again while waiting.
        """
        while not request.Test():
            for do in meanwhile:
                do()
            self.test(TESTS_OF_A_BURST)
            time.sleep(0.001)

    def close(self) -> None:
        """Complete the request and free the communicator."""
        self._self.Send([bytearray(1), MPI.BYTE], dest=0)
        self._never.Wait()
        self._self.Free()
