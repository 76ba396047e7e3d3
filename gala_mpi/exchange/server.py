"""A3C: one shared vector in rank 0's window; every agent adds its steps to it and goes on from the sum. No server process.

The agents compute gradients on their own copy and keep their own RMSprop state; what they add is the optimiser's step
(Mnih et al. 2016, with the local statistics of their appendix), divided by the number of agents: one step of every agent
then moves the vector as far as one step of A2C over all their environments does, and one learning rate serves both. (Steps
added in full move it n times as far; on Pong two agents killed every ReLU in the first updates that way.) Adding and
reading are one get-accumulate, atomic for each element: agents may interleave within the vector, as in Hogwild.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI

from gala_mpi.device import on_host
from gala_mpi.exchange.agreement import SharedWord
from gala_mpi.exchange.base import Counters, Exchange, Shared
from gala_mpi.mpi.progress import Progress
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.window import as_bytes

TESTS_PER_PROGRESS = 10
# Words of the window, int64
STOP, PUSHES = 0, 1  # how often somebody wished to stop; how many steps have been added to the vector
WORDS = 2
VECTOR = 64  # bytes before the shared vector


class Server(Exchange):
    """Push a step to rank 0's window and pull the sum, both in one operation. A wish to stop goes there with the next step."""

    def __init__(self, comm: MPI.Intracomm, length: int):
        self._added, self._heard = np.zeros(WORDS, np.int64), np.zeros(WORDS, np.int64)
        self._added[PUSHES] = 1
        super().__init__(comm, length, SharedWord(self._added[STOP : STOP + 1], self._heard[STOP : STOP + 1]))
        self._window = MPI.Win.Allocate(VECTOR + 4 * length if comm.rank == 0 else 0, 1, comm=comm)
        self._base = np.zeros(length, np.float32)  # the shared vector as this rank last pulled it
        self._pushes = self._lag = 0  # the steps in it then; how many of others had come before this rank's next
        self._step = np.zeros(length, np.float32)
        self._last: Shared | None = None  # once all have pushed their last step
        self._progress = Progress()
        self._roll = Roll.of(comm)

    def start(self, version: int, parameters: torch.Tensor) -> None:
        self._window.Lock_all(MPI.MODE_NOCHECK)
        with on_host(parameters) as vector:
            if self._comm.rank == 0:
                memory = as_bytes(self._window.tomemory())
                memory[:VECTOR] = 0
                memory[VECTOR:].view(np.float32)[:] = vector
                self._window.Sync()
            self._comm.Barrier()
            self._read(self._base, MPI.NO_OP)
            vector[:] = self._base
        self._comm.Barrier()  # all begin with the same vector, which nobody has added to

    def parameters(self, parameters: torch.Tensor) -> None:
        with on_host(parameters) as vector:
            np.subtract(vector, self._base, out=self._step)
            self._step *= np.float32(1 / self._comm.size)
            self._read(self._base, MPI.SUM)
            self._base += self._step
            vector[:] = self._base
        before = int(self._heard[PUSHES])
        self._lag, self._pushes = before - self._pushes, before + 1

    def _read(self, into: np.ndarray, then: MPI.Op) -> None:
        """Read the shared vector into `into` (float32 [P]) and its words; then add this rank's step (SUM) or not (NO_OP).

        Wait for one's own message only, with progress for others.
        """
        requests = [
            self._window.Rget_accumulate(
                [added, len(added), words], [read, len(read), words], 0, target=[offset, len(read), words], op=then
            )
            for added, read, words, offset in (
                (self._step, into, MPI.FLOAT, VECTOR),
                (self._added, self._heard, MPI.INT64_T, 0),
            )
        ]
        watch = self._roll.watch_peers([0])
        while not MPI.Request.Testall(requests):
            watch()
            self.progress()

    def shared(self) -> Shared:
        if self._last:
            return self._last
        vector = np.empty(self._length, np.float32)
        self._read(vector, MPI.NO_OP)
        return Shared(vector, int(self._heard[PUSHES]))

    def counters(self) -> Counters:
        return Counters(lag=self._lag)

    def progress(self) -> None:
        self._progress.test(TESTS_PER_PROGRESS)

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._progress.wait(self._comm.Ibarrier(), meanwhile, self._roll.watch())
        self._last = self.shared()
        self._window.Unlock_all()
        self._window.Free()
        self._progress.close()
