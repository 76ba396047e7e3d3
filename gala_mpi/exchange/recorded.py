"""Gossip once more: at every update exactly the messages are averaged that a recorded run averaged then, with its weights.

Every agent knows from its own `mixes` table which versions of whom it needs. It tells their writers, and waits for each. A
writer sends a copy to those that need a version, and waits for nobody: so there is no circle of waiting, since whatever was
mixed had been published before. (Copies pile up while a reader is behind its writer by as much as it was in the run.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI

from gala_mpi.errors import JobError
from gala_mpi.exchange.agreement import Agreement, Order
from gala_mpi.exchange.base import Counters, Exchange, Mix
from gala_mpi.exchange.gossip import average
from gala_mpi.mpi.progress import Progress
from gala_mpi.mpi.roll import Roll


class Recorded(Exchange):
    """Mix what a table says.

    Args:
        comm: all agents.
        length: P, the number of parameters.
        mixes: this agent's table of the recorded run, in order: columns update, peer, version, weight.
        last: the last update that it recorded.
    """

    def __init__(self, comm: MPI.Intracomm, length: int, mixes: np.ndarray, last: int):
        super().__init__(comm.Dup(), length, Agreement())
        self._progress = Progress()
        self._roll = Roll.of(comm)
        mixes, self._last = recorded_by_all(comm, mixes, last)
        self._script: dict[int, list[Mix]] = defaultdict(list)
        for update, *mix in mixes.tolist():
            self._script[update].append(Mix(*mix))
        needed = comm.alltoall([mixes["version"][mixes["peer"] == writer].tolist() for writer in range(comm.size)])
        self._readers: dict[int, list[int]] = defaultdict(list)  # of each version of this rank
        for reader, versions in enumerate(needed):
            for version in versions:
                self._readers[version].append(reader)
        self._sends: list[MPI.Request] = []
        self._version = self._staleness = 0

    def parameters(self, parameters: torch.Tensor) -> None:
        self._version += 1
        readers = self._readers.pop(self._version, [])
        message = np.array(parameters.cpu()) if readers else None  # a copy
        self._sends += [self._comm.Isend([message, MPI.FLOAT], reader) for reader in readers]
        mixes = self._mixes()
        average(parameters, [self._receive(mix.peer) for mix in mixes], [mix.weight for mix in mixes], out=parameters)
        self._staleness = 0 if mixes else self._staleness + 1

    def _mixes(self) -> list[Mix]:
        return self._script.get(self._version, [])

    def _receive(self, peer: int) -> np.ndarray:
        """Return its next message to this rank: they come as they are needed, since no version is mixed after a newer one."""
        message = np.empty(self._length, np.float32)
        self._progress.wait(self._comm.Irecv([message, MPI.FLOAT], peer), self.progress, self._roll.watch_peers([peer]))
        return message

    def progress(self) -> None:
        self._sends = [send for send in self._sends if not send.Test()]

    def agree(self, wish: Order) -> Order:
        """Go on to the end of what was recorded, as all do."""
        if wish.stop:
            raise JobError("a replay stops nowhere but at its end, since others wait for this rank's messages")
        return Order(stop=self._version >= self._last, save=wish.save)

    def counters(self) -> Counters:
        return Counters(self._mixes(), self._staleness)

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._progress.wait(self._comm.Ibarrier(), self.progress, meanwhile, self._roll.watch())
        MPI.Request.Waitall(self._sends)
        self._progress.close()
        self._comm.Free()


def recorded_by_all(comm: MPI.Intracomm, mixes: np.ndarray, last: int) -> tuple[np.ndarray, int]:
    """Return this rank's rows and last update without those that need a version of which its writer has no record. Collective.

    After a kill, one agent's table may end long before another's.
    """
    while True:
        ends = np.array(comm.allgather(last))
        mixes = mixes[mixes["update"] <= last]
        reached = int(min(mixes["update"][mixes["version"] > ends[mixes["peer"]]] - 1, default=last))
        if comm.allreduce(reached == last, MPI.LAND):
            return mixes, last
        last = reached
