"""Preemption: once enough ranks have played their rollouts, the others cut theirs short, since all meet at the gradient.

Wijmans et al. 2020 (DD-PPO), section 3: no rollout is cut before a quarter of it is played, and the gradients of all ranks
weigh the same, however many steps are behind them.
"""

from __future__ import annotations

import math

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.shared_count import SharedCount

PLAYED = 0.25  # the share of a rollout that is always played
ROUNDING = 1e-9


def shortest(length: int) -> int:
    """Return after how many of the `length` steps of a rollout it may be cut short."""
    return math.ceil(PLAYED * length)


class Preemption:
    """The word that enough ranks have played. Collective to make and to free.

    Args:
        comm: all ranks.
        share: of the ranks, in (0, 1]: so many are enough.

    Attributes:
        steps: of all ranks, in all rollouts up to the last one that they have met about.
    """

    def __init__(self, comm: MPI.Intracomm, share: float):
        self._comm, self._roll, self._count = comm, Roll.of(comm), SharedCount(comm)
        self._enough = math.ceil(share * comm.size - ROUNDING)
        self._rollouts = 0  # that this rank has played
        self._sum, self._meeting = np.zeros(1, np.int64), MPI.REQUEST_NULL
        self.steps = 0

    def due(self) -> bool:
        """Return whether enough ranks have played the rollout that this rank is playing. (In those before all have.)"""
        return self._count.look() >= self._rollouts * self._comm.size + self._enough

    def played(self, steps: int) -> None:
        """Say that this rank has played its rollout, of so many steps."""
        self._rollouts += 1
        self._count.add()
        self._sum[0] = steps
        self._meeting = self._comm.Iallreduce(MPI.IN_PLACE, [self._sum, MPI.INT64_T], MPI.SUM)

    def meet(self) -> None:
        """Wait for the steps of all ranks' rollouts, if they have not been added yet. Collective."""
        if self._meeting != MPI.REQUEST_NULL:
            self._roll.wait(self._meeting)
            self.steps += int(self._sum[0])

    def progress(self) -> None:
        """Move messages along without waiting; called often."""
        self._count.progress()

    def free(self) -> None:
        """Free the window. Collective."""
        self._count.free()
