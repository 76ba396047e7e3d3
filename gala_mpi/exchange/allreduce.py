"""A2C: gradients averaged over all ranks before every optimiser step. Ranks wait for each other and stay bit-identical."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mpi4py import MPI

from gala_mpi.device import on_host
from gala_mpi.exchange.agreement import Collective
from gala_mpi.exchange.base import Exchange, Settings, is_finite
from gala_mpi.exchange.preemption import Preemption


class AllReduce(Exchange):
    """Average gradients.

    Args:
        comm: all agents.
        length: P, the number of parameters.
        preempt: the share of ranks whose rollouts are waited for; None: all are.
    """

    takes = frozenset({"preempt"})
    collective = averages_gradients = True

    @classmethod
    def build(cls, comm: MPI.Intracomm, length: int, settings: Settings) -> AllReduce:
        return cls(comm, length, settings.preempt)

    @classmethod
    def in_step(cls, settings: Settings) -> bool:
        return True

    def __init__(self, comm: MPI.Intracomm, length: int, preempt: float | None = None):
        self._mean = Collective(comm, length)
        self._preemption = None if preempt is None else Preemption(comm, preempt)
        super().__init__(comm, length, self._mean)

    def start(self, version: int, parameters: torch.Tensor) -> None:
        with on_host(parameters) as vector:
            self._comm.Bcast([vector, MPI.FLOAT], root=0)

    def cut_short(self) -> bool:
        return self._preemption is not None and self._preemption.due()

    def played(self, steps: int) -> None:
        if self._preemption is not None:
            self._preemption.played(steps)

    def steps(self) -> int | None:
        return None if self._preemption is None else self._preemption.steps

    def progress(self) -> None:
        if self._preemption is not None:
            self._preemption.progress()

    def gradient(self, gradient: torch.Tensor) -> bool:
        """A gradient that is not finite is not in the mean: its agent goes on by the others'."""
        counts = is_finite(gradient)
        with on_host(gradient) as vector:
            self._mean.average(vector, counts)
        if self._preemption is not None:
            self._preemption.meet()
        return counts

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        super().close(meanwhile)
        if self._preemption is not None:
            self._preemption.free()
