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
from gala_mpi.exchange.base import Exchange
from gala_mpi.mpi.progress import Progress
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.window import as_bytes

TESTS_PER_PROGRESS = 10
VECTOR = 64  # bytes before the shared vector; the first 8 hold the stop word


class Server(Exchange):
    """Push a step to rank 0's window and pull the sum, both in one operation. A wish to stop goes there with the next step."""

    def __init__(self, comm: MPI.Intracomm, length: int):
        self._word = SharedWord()
        super().__init__(comm, length, self._word)
        self._window = MPI.Win.Allocate(VECTOR + 4 * length if comm.rank == 0 else 0, 1, comm=comm)
        self._base = np.zeros(length, np.float32)  # the shared vector as this rank last saw it
        self._step = np.zeros(length, np.float32)
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
            self._base[:] = vector
            self._step[:] = 0
            self._add_and_read(vector)

    def parameters(self, parameters: torch.Tensor) -> None:
        with on_host(parameters) as vector:
            np.subtract(vector, self._base, out=self._step)
            self._step *= np.float32(1 / self._comm.size)
            self._add_and_read(vector)

    def _add_and_read(self, parameters: np.ndarray) -> None:
        """Compute shared += step; parameters = base = shared. Wait for one's own message only, with progress for others."""
        vector = [VECTOR, self._length, MPI.FLOAT]
        requests = [
            self._window.Rget_accumulate(
                [self._step, self._length, MPI.FLOAT], [self._base, self._length, MPI.FLOAT], 0, target=vector, op=MPI.SUM
            ),
            self._window.Rget_accumulate(
                [self._word.stop, 1, MPI.INT64_T], [self._word.heard, 1, MPI.INT64_T], 0, target=[0, 1, MPI.INT64_T], op=MPI.MAX
            ),
        ]
        watch = self._roll.watch_peers([0])
        while not MPI.Request.Testall(requests):
            watch()
            self.progress()
        self._base += self._step
        parameters[:] = self._base

    def progress(self) -> None:
        self._progress.test(TESTS_PER_PROGRESS)

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._progress.wait(self._comm.Ibarrier(), meanwhile, self._roll.watch())
        self._window.Unlock_all()
        self._window.Free()
        self._progress.close()
